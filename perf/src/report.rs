//! A result as one page: what was measured, whether it may be believed, and the plots.
//!
//! ```text
//!   compare             ratio bars, percentile curves, latency over the rounds, tables
//!   produce, consume,
//!   e2e, floor          percentile curve, latency over time
//!   sweep               saturation curve, percentile curve of each rate
//!   journal, recover    a table of their lines
//! ```
//! The page stands alone: styles and plots are inside, nothing is loaded and no script runs. The
//! percentile axis is logarithmic, so that each nine takes the same room: a tail is not a pixel.
//!
//! Failure: a file that is not there, or that `laelaps perf` has not written, is named.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::block::{Block, Histogram, SCHEMA, write_hgrm};
use crate::command::Failure;
use crate::compare::{BlockSummary, Comparison};
use crate::show;
use crate::verdict::Verdict;

mod plot;

use self::plot::{Axis, Bar, Scale, Series, bars, escape, lines};

/// What `laelaps perf report` is told.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A result that was written by --json
    #[arg(value_name = "FILE")]
    pub result: PathBuf,
    /// Where to write the page [default: beside the result, ending in .html]
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write each latency histogram here too, as HdrHistogram text for its plotters
    #[arg(long, value_name = "DIR")]
    pub hgrm: Option<PathBuf>,
}

/// `laelaps perf report`.
///
/// # Errors
/// What could not be read or written.
pub fn command(options: &Options) -> Result<(), Failure> {
    let path = &options.result;
    let named = |what: String| Failure::from(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
    let page = page(&text).map_err(|error| named(error.to_string()))?;
    let html = options.html.clone().unwrap_or_else(|| path.with_extension("html"));
    show::write_file(&html, &page.html)?;
    if let Some(directory) = &options.hgrm {
        std::fs::create_dir_all(directory)?;
        for (name, histogram) in &page.histograms {
            let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            show::write_file(&directory.join(name + ".hgrm"), &write_hgrm(histogram))?;
        }
    }
    show::print(&format!("report {}\n", html.display()))
}

/// A page and the histograms in it, by name.
struct Page {
    html: String,
    histograms: Vec<(String, Histogram<u64>)>,
}

/// The page of any result.
fn page(text: &str) -> Result<Page, Failure> {
    let value: Value = serde_json::from_str(text)?;
    if value["schema"] != SCHEMA {
        return Err(format!("no result of this version of `laelaps perf` ({SCHEMA})").into());
    }
    let kind = value["kind"].as_str().unwrap_or("result").to_owned();
    if kind == "compare" {
        let comparison: Comparison = serde_json::from_value(value)?;
        let html = self::comparison(&comparison);
        return Ok(Page { html, histograms: latencies(&pooled(&comparison)) });
    }
    let mut body = String::new();
    let mut blocks: Vec<(String, Block)> = Vec::new();
    for name in ["produced", "consumed", "block"] {
        if value[name].is_object() {
            blocks.push((name.to_owned(), serde_json::from_value(value[name].clone())?));
        }
    }
    if let Some(steps) = value["steps"].as_array() {
        for step in steps {
            let block: Block = serde_json::from_value(step["block"].clone())?;
            let rate = step["rate"].as_f64().unwrap_or(0.0);
            blocks.push((format!("{} a second", show::grouped(rate.round() as u64)), block));
        }
        body.push_str(&saturation(&blocks));
    }
    body.push_str(&curves(&blocks));
    body.push_str(&over_time(&blocks));
    body.push_str(&block_table(&blocks));
    for name in ["lines", "points", "checked"] {
        if let Some(rows) = value[name].as_array() {
            body.push_str(&value_table(rows));
        }
    }
    let verdict: Option<Verdict> = serde_json::from_value(value["verdict"].clone()).ok();
    let facts = [
        ("kind", kind.clone()),
        ("machine", machine_line(&value["machine"])),
        ("asked", value.get("plan").or(value.get("load")).map(inline).unwrap_or_default()),
    ];
    let html = document(&format!("laelaps perf {kind}"), verdict.as_ref(), &facts, &body);
    Ok(Page { html, histograms: latencies(&blocks) })
}

/// The page of a comparison.
#[must_use]
pub fn comparison(comparison: &Comparison) -> String {
    let blocks = pooled(comparison);
    let mut body = String::new();
    for percentile in ["p50", "p99"] {
        let shown: Vec<Bar> = comparison
            .ratios
            .iter()
            .flat_map(|(name, ratio)| {
                let of = ratio.estimates().into_iter().filter(|(which, _)| *which == percentile);
                of.map(move |(_, estimate)| Bar {
                    name: name.clone(),
                    value: estimate.median,
                    low: estimate.low,
                    high: estimate.high,
                })
            })
            .collect();
        let title = format!("Ratios of {percentile}: median of the rounds, 5–95 % interval");
        body.push_str(&bars(&title, &shown));
    }
    body.push_str(&curves(&blocks));
    body.push_str(&over_rounds(comparison));
    body.push_str(&block_table(&blocks));
    body.push_str(&format!("<pre>{}</pre>\n", escape(&comparison.text())));
    let machine = serde_json::to_value(&comparison.machine).unwrap_or_default();
    let plan = serde_json::to_value(&comparison.plan).unwrap_or_default();
    let place = serde_json::to_value(&comparison.place).unwrap_or_default();
    let facts = [
        ("machine", machine_line(&machine)),
        ("disk", inline(&place)),
        ("asked", inline(&plan)),
        (
            "compared",
            comparison
                .variants
                .iter()
                .map(|one| format!("{}: {}", one.name, one.what))
                .collect::<Vec<_>>()
                .join("; "),
        ),
    ];
    document("laelaps perf compare", Some(&comparison.verdict), &facts, &body)
}

fn pooled(comparison: &Comparison) -> Vec<(String, Block)> {
    let of = |one: &crate::compare::Variant| Some((one.name.clone(), one.pooled.clone()?));
    comparison.variants.iter().filter_map(of).collect()
}

fn latencies(blocks: &[(String, Block)]) -> Vec<(String, Histogram<u64>)> {
    blocks.iter().map(|(name, block)| (name.clone(), block.intended.clone())).collect()
}

const LATENCY: Axis = Axis { label: "latency, µs", scale: Scale::Log };

fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

/// Latency by percentile, each nine as wide as the one before.
fn curves(blocks: &[(String, Block)]) -> String {
    const TICKS_PER_HALF_DISTANCE: u32 = 8;
    let series: Vec<Series> = blocks
        .iter()
        .map(|(name, block)| Series {
            name: name.clone(),
            points: block
                .intended
                .iter_quantiles(TICKS_PER_HALF_DISTANCE)
                .map(|step| (step.quantile_iterated_to(), us(step.value_iterated_to())))
                .collect(),
        })
        .collect();
    if series.is_empty() {
        return String::new();
    }
    let share = Axis { label: "share of the messages", scale: Scale::Nines };
    lines("Latency from the intended time, by percentile", &share, &LATENCY, &series)
}

/// Latency by second.
fn over_time(blocks: &[(String, Block)]) -> String {
    let mut text = String::new();
    for (name, block) in blocks.iter().filter(|(_, block)| block.slow.len() > 1) {
        let of = |what: &str, pick: &dyn Fn(&crate::block::Step) -> u64| Series {
            name: what.to_owned(),
            points: block.slow.iter().map(|step| (step.second as f64, us(pick(step)))).collect(),
        };
        let series = [
            of("p50", &|step| step.p50_ns),
            of("p99", &|step| step.p99_ns),
            of("max", &|step| step.max_ns),
        ];
        let time = Axis { label: "seconds", scale: Scale::Linear };
        text.push_str(&lines(&format!("Latency over time: {name}"), &time, &LATENCY, &series));
    }
    text
}

/// Latency by round, dropped blocks left out.
fn over_rounds(comparison: &Comparison) -> String {
    let rounds = || (1..).zip(&comparison.rounds);
    let mut text = String::new();
    for (what, pick) in [
        ("p50", (|block: &BlockSummary| block.intended_ns.p50) as fn(&BlockSummary) -> u64),
        ("p99", |block: &BlockSummary| block.intended_ns.p99),
    ] {
        let series: Vec<Series> = comparison
            .variants
            .iter()
            .map(|one| Series {
                name: one.name.clone(),
                points: rounds()
                    .filter_map(|(number, round)| {
                        let block = round.blocks.get(&one.name)?;
                        block.dropped.is_none().then(|| (f64::from(number), us(pick(block))))
                    })
                    .collect(),
            })
            .collect();
        let round = Axis { label: "round", scale: Scale::Linear };
        text.push_str(&lines(
            &format!("Latency over the rounds: {what}"),
            &round,
            &LATENCY,
            &series,
        ));
    }
    text
}

/// What was achieved, and what it cost in latency.
fn saturation(blocks: &[(String, Block)]) -> String {
    let of = |name: &str, quantile: f64| Series {
        name: name.to_owned(),
        points: blocks
            .iter()
            .map(|(_, block)| (block.achieved(), us(block.intended.value_at_quantile(quantile))))
            .collect(),
    };
    let series = [of("p50", 0.5), of("p90", 0.9), of("p99", 0.99), of("p99.9", 0.999)];
    let rate = Axis { label: "messages a second, achieved", scale: Scale::Linear };
    lines("Saturation", &rate, &LATENCY, &series)
}

fn block_table(blocks: &[(String, Block)]) -> String {
    if blocks.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "<table><tr><th></th><th>a second</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th>\
         <th>max µs</th><th>answered</th><th>not</th><th>client µs</th><th>server µs</th></tr>\n",
    );
    for (name, block) in blocks {
        let at = |quantile| us(block.intended.value_at_quantile(quantile));
        let server = block
            .cpu_server_ns_per_message()
            .map_or("–".to_owned(), |ns| format!("{:.1}", ns / 1000.0));
        writeln!(
            text,
            "<tr><th>{}</th><td>{:.0}</td><td>{:.1}</td><td>{:.1}</td><td>{:.1}</td>\
             <td>{:.1}</td><td>{:.1}</td><td>{}</td><td>{}</td><td>{:.1}</td>\
             <td>{server}</td></tr>",
            escape(name),
            block.achieved(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            us(block.intended.max()),
            block.completed,
            block.lost + block.refused + block.unsent,
            block.cpu_client_ns_per_message() / 1000.0,
        )
        .expect("memory takes text");
    }
    text.push_str("</table>\n");
    text
}

/// Objects of one shape, a row each.
fn value_table(rows: &[Value]) -> String {
    let Some(first) = rows.first().and_then(Value::as_object) else { return String::new() };
    let mut text = String::from("<table><tr>");
    for key in first.keys() {
        write!(text, "<th>{}</th>", escape(key)).expect("memory takes text");
    }
    text.push_str("</tr>\n");
    for row in rows {
        text.push_str("<tr>");
        for key in first.keys() {
            write!(text, "<td>{}</td>", escape(&inline(&row[key]))).expect("memory takes text");
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</table>\n");
    text
}

/// A value on one line: `size 256, rate 1000`.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let shown = fields.iter().filter(|(_, value)| !value.is_null());
            let each = shown.map(|(key, value)| format!("{key} {}", inline(value)));
            each.collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(inline).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if !number.is_u64() && !number.is_i64() => format!("{float:.3}"),
            Some(_) | None => number.to_string(),
        },
        Value::Bool(yes) => yes.to_string(),
        Value::Null => String::from("–"),
    }
}

fn machine_line(machine: &Value) -> String {
    inline(machine)
}

fn document(
    title: &str,
    verdict: Option<&Verdict>,
    facts: &[(&str, String)],
    body: &str,
) -> String {
    const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:820px;margin:2em auto;\
        padding:0 1em;color:#222;background:#fff}svg{width:100%;height:auto;margin:1em 0}\
        svg text{font-size:12px;fill:#333}svg .title{font-size:14px;font-weight:600}\
        .grid{stroke:#ddd}table{border-collapse:collapse;margin:1em 0;font-size:13px}\
        td,th{border-bottom:1px solid #ddd;padding:.25em .6em;text-align:right}\
        pre{overflow-x:auto;font-size:12px;background:#f6f6f6;padding:1em}\
        .valid{color:#00664a}.invalid{color:#b03a00}dt{font-weight:600}dd{margin:0 0 .4em 1em}";
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>{0}</title><style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escape(title)
    );
    if let Some(verdict) = verdict {
        let (class, word) =
            if verdict.is_valid() { ("valid", "VALID") } else { ("invalid", "INVALID") };
        write!(text, "<h2 class=\"{class}\">{word}</h2>\n<ul>").expect("memory takes text");
        for reason in verdict.reasons() {
            write!(text, "<li>{}</li>", escape(reason)).expect("memory takes text");
        }
        for note in verdict.notes() {
            write!(text, "<li>note: {}</li>", escape(note)).expect("memory takes text");
        }
        text.push_str("</ul>\n");
    }
    text.push_str("<dl>");
    for (name, fact) in facts.iter().filter(|(_, fact)| !fact.is_empty()) {
        write!(text, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(fact))
            .expect("memory takes text");
    }
    write!(text, "</dl>\n{body}</body></html>\n").expect("memory takes text");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::tests::comparison;
    use crate::machine::Machine;

    #[test]
    fn a_comparison_becomes_a_page_that_stands_alone() {
        let page = super::comparison(&comparison(150, None));
        for word in ["Ratios of p99", "by percentile", "over the rounds", "sync/floor", "1.50"] {
            assert!(page.contains(word), "{word}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        for outside in ["http:", "https:", "<script", "src=", "@import", "NaN"] {
            assert!(!page.contains(outside), "{outside}");
        }
        // A debug build is told in words, and the verdict is the first thing to be seen.
        assert!(page.find("VALID").expect("a verdict") < page.find("<svg").expect("a plot"));
    }

    fn result(kind: &str, more: &Value) -> String {
        let block = comparison(150, None).variants[0].pooled.clone();
        let mut value = serde_json::json!({
            "schema": SCHEMA,
            "kind": kind,
            "machine": Machine::here(),
            "verdict": Verdict::default(),
            "plan": {"size": 256, "note": "<b>"},
            "block": block,
        });
        if let (Some(fields), Some(more)) = (value.as_object_mut(), more.as_object()) {
            fields.extend(more.clone());
        }
        value.to_string()
    }

    #[test]
    fn each_kind_of_result_has_its_plots_and_its_histograms() {
        let block: Value = serde_json::from_str(&result("floor", &Value::Null)).expect("JSON");
        let floor = page(&block.to_string()).expect("a page");
        assert!(floor.html.contains("by percentile") && floor.html.contains("&lt;b&gt;"));
        assert_eq!(floor.histograms.len(), 1);
        let step = |rate: u32| serde_json::json!({"rate": rate, "block": block["block"]});
        let more = serde_json::json!({"steps": [step(1000), step(2000)]});
        let sweep = page(&result("sweep", &more)).expect("a page");
        assert!(sweep.html.contains("Saturation") && sweep.html.contains("2,000 a second"));
        let more = serde_json::json!({"lines": [{"writer": "journal", "p99": 1.5}], "block": null});
        let journal = page(&result("journal", &more)).expect("a page");
        assert!(journal.html.contains("<td>1.500</td>"), "{}", journal.html);
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("other.json");
        std::fs::write(&path, "{\"schema\": \"other\"}").expect("written");
        let options = Options { result: path.clone(), html: None, hgrm: None };
        let error = command(&options).expect_err("refused").to_string();
        assert!(error.contains("other.json") && error.contains(SCHEMA), "{error}");
        assert!(!path.with_extension("html").exists());
    }

    #[test]
    fn the_command_writes_page_and_histograms() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("compare.json");
        show::write_json(&path, &comparison(150, None)).expect("written");
        let hgrm = root.path().join("hgrm");
        let options = Options { result: path.clone(), html: None, hgrm: Some(hgrm.clone()) };
        command(&options).expect("a page");
        assert!(path.with_extension("html").exists());
        let text = std::fs::read_to_string(hgrm.join("sync.hgrm")).expect("written");
        assert!(text.contains("Percentile"));
    }
}
