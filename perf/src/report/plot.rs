//! Plots as inline SVG: lines on linear or logarithmic axes, and bars with their intervals.
//!
//! ```text
//!   +-------------------------------------------+
//!   | title                                     |
//!   | y |      ____/  line                      |   legend below
//!   |   |_____/                                 |
//!   |   +----------------- x                    |
//!   +-------------------------------------------+
//! ```
//! Invariants: every text is escaped; a value that is no number, or has no place on a logarithmic
//! axis, is left out; nothing but numbers and escaped text goes into an attribute. Failure: none; a
//! plot of nothing says so.

use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 42.0;
const BOTTOM: f64 = 74.0;

/// Told apart also by those who see fewer colours.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555", "#8a5a00"];

/// How an axis is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// Evenly, from zero.
    Linear,
    /// By powers of ten.
    Log,
    /// By nines: the value is a share below 1; 0.9, 0.99, 0.999 are one step apart.
    Nines,
}

/// An axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    pub(super) label: &'static str,
    pub(super) scale: Scale,
}

/// A line and its name.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// A value with its interval.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) name: String,
    pub(super) value: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Scale {
    /// Where a value stands, before the axis is stretched.
    fn place(self, value: f64) -> Option<f64> {
        let place = match self {
            Self::Linear => value,
            Self::Log => value.log10(),
            Self::Nines => -(1.0 - value).log10(),
        };
        place.is_finite().then_some(place)
    }

    /// Marks between two places: where, and what to write.
    fn marks(self, from: f64, to: f64) -> Vec<(f64, String)> {
        match self {
            Self::Linear => {
                let step = nice((to - from) / 6.0);
                let first = (from / step).ceil() as i64;
                let last = (to / step).floor() as i64;
                (first..=last).map(|n| (n as f64 * step, number(n as f64 * step))).collect()
            }
            Self::Log => (from.floor() as i32..=to.ceil() as i32)
                .map(|power| (f64::from(power), number(10f64.powi(power))))
                .filter(|(place, _)| (from - 1e-9..=to + 1e-9).contains(place))
                .collect(),
            Self::Nines => (0..=to.floor() as i32)
                .map(|nines| {
                    let text = match nines {
                        0 => "0".to_owned(),
                        1 => "90 %".to_owned(),
                        2 => "99 %".to_owned(),
                        more => format!("99.{} %", "9".repeat(more.unsigned_abs() as usize - 2)),
                    };
                    (f64::from(nines), text)
                })
                .collect(),
        }
    }
}

/// Lines over two axes.
pub(super) fn lines(title: &str, x: &Axis, y: &Axis, series: &[Series]) -> String {
    let placed: Vec<(&str, Vec<(f64, f64)>)> = series
        .iter()
        .map(|one| {
            let place = |&(a, b): &(f64, f64)| Some((x.scale.place(a)?, y.scale.place(b)?));
            (one.name.as_str(), one.points.iter().filter_map(place).collect())
        })
        .filter(|(_, points): &(&str, Vec<_>)| !points.is_empty())
        .collect();
    let all = || placed.iter().flat_map(|(_, points)| points.iter());
    if placed.is_empty() {
        return format!("<p>{}: nothing to plot</p>\n", escape(title));
    }
    let (x0, x1) = bounds(x.scale, all().map(|point| point.0));
    let (y0, y1) = bounds(y.scale, all().map(|point| point.1));
    let at_x = |place: f64| LEFT + (place - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let at_y = |place: f64| HEIGHT - BOTTOM - (place - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    let mut svg = open(title, HEIGHT);
    for (place, text) in y.scale.marks(y0, y1) {
        let at = at_y(place);
        put(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0,
                escape(&text)
            ),
        );
    }
    for (place, text) in x.scale.marks(x0, x1) {
        let at = at_x(place);
        put(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 16.0,
                escape(&text)
            ),
        );
    }
    put(
        &mut svg,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
         <text x=\"4\" y=\"{:.1}\">{}</text>\n",
            WIDTH - RIGHT,
            HEIGHT - BOTTOM + 32.0,
            escape(x.label),
            TOP - 14.0,
            escape(y.label)
        ),
    );
    let mut legend_at = LEFT;
    for ((name, points), colour) in placed.iter().zip(COLOURS.iter().cycle()) {
        let mut path = String::new();
        for (a, b) in points {
            put(&mut path, format_args!("{:.1},{:.1} ", at_x(*a), at_y(*b)));
        }
        put(
            &mut svg,
            format_args!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>\n",
                path.trim_end()
            ),
        );
        if let [(a, b)] = points[..] {
            let (a, b) = (at_x(a), at_y(b));
            put(
                &mut svg,
                format_args!("<circle cx=\"{a:.1}\" cy=\"{b:.1}\" r=\"3\" fill=\"{colour}\"/>"),
            );
        }
        let below = HEIGHT - 22.0;
        put(
            &mut svg,
            format_args!(
                "<rect x=\"{legend_at:.1}\" y=\"{:.1}\" width=\"14\" height=\"4\" \
                 fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{below:.1}\">{}</text>\n",
                below - 6.0,
                legend_at + 18.0,
                escape(name)
            ),
        );
        legend_at += 34.0 + 7.5 * name.chars().count() as f64;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Horizontal bars from zero, each with its interval, and a line at 1.
pub(super) fn bars(title: &str, bars: &[Bar]) -> String {
    const ROW: f64 = 24.0;
    const NAMES: f64 = 190.0;
    let bars: Vec<&Bar> = bars.iter().filter(|bar| bar.value.is_finite()).collect();
    if bars.is_empty() {
        return format!("<p>{}: nothing to plot</p>\n", escape(title));
    }
    let height = TOP + ROW * bars.len() as f64 + 30.0;
    // An interval that is wider than all else must not flatten the rest.
    let widest = bars.iter().map(|bar| bar.value * 1.6).fold(1.2, f64::max);
    let at = |value: f64| NAMES + value.clamp(0.0, widest) / widest * (WIDTH - NAMES - 150.0);
    let mut svg = open(title, height);
    for (bar, row) in bars.iter().zip(0u32..) {
        let y = TOP + ROW * f64::from(row);
        let middle = y + 9.0;
        put(
            &mut svg,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{NAMES}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"18\" fill=\"{}\"/>\
             <line stroke=\"#000\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" \
             y2=\"{middle:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{:.2} ({:.2}–{:.2})</text>\n",
                NAMES - 8.0,
                y + 13.0,
                escape(&bar.name),
                at(bar.value) - NAMES,
                COLOURS[4],
                at(bar.low),
                at(bar.high),
                at(bar.high.max(bar.value)) + 8.0,
                y + 13.0,
                bar.value,
                bar.low,
                bar.high
            ),
        );
    }
    put(
        &mut svg,
        format_args!(
            "<line stroke=\"#d55e00\" stroke-dasharray=\"4 3\" x1=\"{0:.1}\" x2=\"{0:.1}\" \
         y1=\"{TOP}\" y2=\"{1:.1}\"/><text x=\"{0:.1}\" y=\"{2:.1}\" \
         text-anchor=\"middle\">1</text>\n",
            at(1.0),
            height - 26.0,
            height - 12.0
        ),
    );
    svg.push_str("</svg>\n");
    svg
}

/// Text that may stand in HTML, also within quotes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

fn open(title: &str, height: f64) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{0}\">\
         <text class=\"title\" x=\"{LEFT}\" y=\"16\">{0}</text>\n",
        escape(title)
    )
}

fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("memory takes text");
}

/// The least and the largest place, apart from each other.
fn bounds(scale: Scale, places: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
    for place in places {
        least = least.min(place);
        most = most.max(place);
    }
    let (least, most) = match scale {
        Scale::Linear => (least.min(0.0), most * 1.05),
        Scale::Log => (least.floor(), most.ceil()),
        Scale::Nines => (0.0, most),
    };
    if most - least > 1e-9 { (least, most) } else { (least, least + 1.0) }
}

/// The next of 1, 2, 5 times a power of ten.
fn nice(step: f64) -> f64 {
    let unit = 10f64.powf(step.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * unit).find(|n| *n >= step).unwrap_or(unit)
}

fn number(value: f64) -> String {
    if value.abs() >= 1e6 {
        format!("{:.0}M", value / 1e6)
    } else if value.abs() >= 1e3 {
        format!("{:.0}k", value / 1e3)
    } else if value == 0.0 || value.abs() >= 1.0 {
        format!("{value:.0}")
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(scale: Scale) -> Axis {
        Axis { label: "x <y>", scale }
    }

    fn series(points: &[(f64, f64)]) -> Series {
        Series { name: "a<b>\"&'".to_owned(), points: points.to_vec() }
    }

    #[test]
    fn texts_are_escaped_wherever_they_stand() {
        let points = series(&[(1.0, 1.0), (2.0, 20.0)]);
        let svg = lines("<script>", &axis(Scale::Linear), &axis(Scale::Log), &[points]);
        assert!(!svg.contains("<script>") && !svg.contains("a<b>"), "{svg}");
        assert!(svg.contains("a&lt;b&gt;&quot;&amp;&#39;"));
        let bar = Bar { name: "<i>".to_owned(), value: 1.0, low: 0.9, high: 1.1 };
        assert!(!bars("t", &[bar]).contains("<i>"));
    }

    #[test]
    fn what_has_no_place_is_left_out() {
        let none = [(f64::NAN, 1.0), (1.0, 0.0), (1.0, -1.0), (f64::INFINITY, 1.0)];
        let plot = |points: &[(f64, f64)]| {
            lines("t", &axis(Scale::Linear), &axis(Scale::Log), &[series(points)])
        };
        assert!(plot(&none).contains("nothing to plot"));
        let some = plot(&[none.as_slice(), &[(1.0, 10.0), (2.0, 30.0)]].concat());
        let drawn = some.split("points=\"").nth(1).expect("a line");
        assert_eq!(drawn.split('"').next().expect("its points").split(' ').count(), 2);
        assert!(!some.contains("NaN") && !some.contains("inf"), "{some}");
        assert!(bars("t", &[]).contains("nothing to plot"));
    }

    #[test]
    fn nines_are_one_step_apart() {
        let place = |share| Scale::Nines.place(share).expect("below 1");
        assert!((place(0.9) - 1.0).abs() < 1e-9 && (place(0.999) - 3.0).abs() < 1e-9);
        assert_eq!(Scale::Nines.place(1.0), None);
        let marks = Scale::Nines.marks(0.0, 4.2);
        let texts: Vec<&str> = marks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["0", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn one_point_is_still_seen() {
        let svg = lines("t", &axis(Scale::Linear), &axis(Scale::Linear), &[series(&[(3.0, 7.0)])]);
        assert!(svg.contains("<circle") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn marks_are_round_numbers() {
        let texts = |scale: Scale, from, to| -> Vec<String> {
            scale.marks(from, to).into_iter().map(|(_, text)| text).collect()
        };
        assert_eq!(texts(Scale::Linear, 0.0, 6000.0), ["0", "1k", "2k", "3k", "4k", "5k", "6k"]);
        assert_eq!(texts(Scale::Log, 1.0, 4.0), ["10", "100", "1k", "10k"]);
    }
}
