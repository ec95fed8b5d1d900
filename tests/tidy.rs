//! The house's rules that a compiler can't check, as tests.
//!
//! ```text
//!   every file of the repository ──▶ Source { path, text, code }
//!                                      │        code: the text with comments and strings blanked
//!                      each rule  ◀────┘
//!                         └──▶ Finding { path, line, what }  ── minus RELAXED ──▶ must be none
//! ```
//!
//! A rule is a plain function from one source to findings, so that each one is also tried on a bad
//! sample at the foot of this file: a rule that can't find anything is worse than none. `RELAXED`
//! names what is let through, with the reason; an entry that lets nothing through any more fails
//! the run, so the list can only shrink.
//!
//! When a test fails it prints every finding as `path:line: what`, nothing is changed.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What is let through: rule, path, reason. It may only shrink.
const RELAXED: &[(&str, &str, &str)] = &[
    ("sans-io", "sim/src/main.rs", "the simulator's command line: arguments, threads, a stopwatch"),
    ("unsafe", "amqp/tests/allocations.rs", "a counting allocator, in one test file"),
];

/// Crates that never touch the world: the core and the leaves.
const SANS_IO: &[&str] = &["amqp", "journal", "broker", "replica", "sim"];

/// Who may import whom among our own crates; the picture is in `docs/ARCHITECTURE.md`.
const IMPORTS: &[(&str, &[&str])] = &[
    ("amqp", &[]),
    ("journal", &[]),
    ("net", &[]),
    ("replica", &["journal"]),
    ("broker", &["amqp", "journal", "replica"]),
    ("sim", &["amqp", "journal", "replica", "broker"]),
    ("perf", &["amqp", "journal", "net"]),
    ("bench", &["amqp", "journal", "net", "replica", "broker", "perf"]),
    ("bench/glommio", &["net"]),
    ("fuzz", &["amqp", "journal", "replica", "broker"]),
    ("tests/clients/fe2o3", &[]),
    ("tests/powerfs", &[]),
    ("", &["amqp", "journal", "net", "replica", "broker", "perf"]),
];

const COLUMNS: usize = 100;
const LINES_MAX: usize = 1000;

/// One text file of the repository, its path relative to the root with `/` between its parts.
struct Source {
    path: String,
    text: String,
    /// The text with comments, strings and character literals turned to blanks, lines kept.
    code: String,
}

#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    what: String,
}

type Rule = fn(&Source) -> Vec<Finding>;

/// The rules that look at one file at a time, by the name that `RELAXED` uses.
const RULES: &[(&str, Rule)] = &[
    ("columns", columns),
    ("opening", opening),
    ("length", length),
    ("file-name", file_name),
    ("sans-io", sans_io),
    ("unsafe", unsafe_only_in_net),
    ("forbid-unsafe", forbid_unsafe),
    ("left-over", left_over),
    ("net-in-src", net_in_src),
    ("imports", imports),
    ("one-title", one_title),
    ("lock-url", lock_url),
];

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { code_of(text) } else { String::new() };
        Self { path: path.into(), text: text.into(), code }
    }

    fn is(&self, extension: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, e)| e == extension)
    }

    /// The file or the part of it that holds tests is allowed what the product is not.
    fn product_code(&self) -> &str {
        let in_tests = self.path.split('/').any(|part| part == "tests" || part == "tests.rs");
        let end = if in_tests { 0 } else { tests_at(&self.code).unwrap_or(self.code.len()) };
        &self.code[..end]
    }

    fn at(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, what: what.into() }
    }
}

// ---- The rules ---------------------------------------------------------------------------------

fn columns(source: &Source) -> Vec<Finding> {
    if !["rs", "py", "js", "java", "sh", "run"].iter().any(|e| source.is(e)) {
        return Vec::new();
    }
    let wide = |line: &str| line.chars().count() > COLUMNS;
    find_lines(source, &source.text, |line| wide(line).then(|| "wider than 100 columns".into()))
}

fn opening(source: &Source) -> Vec<Finding> {
    if !source.is("rs") || source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![source.at(1, "a .rs file opens with `//!`: what it is, its picture, its invariants")]
}

fn length(source: &Source) -> Vec<Finding> {
    if !source.is("rs") {
        return Vec::new();
    }
    let end = tests_at(&source.code).unwrap_or(source.code.len());
    let lines = source.code[..end].lines().count();
    if lines <= LINES_MAX {
        return Vec::new();
    }
    vec![source.at(lines, format!("{lines} lines without its tests, at most {LINES_MAX}"))]
}

fn file_name(source: &Source) -> Vec<Finding> {
    const BANNED: &[&str] = &["util", "utils", "common", "helper", "helpers", "impls", "misc"];
    let names_nothing = |part: &str| BANNED.contains(&part.trim_end_matches(".rs"));
    if !source.is("rs") || !source.path.split('/').any(names_nothing) {
        return Vec::new();
    }
    vec![source.at(1, "this name says nothing: name the file after what it holds")]
}

fn sans_io(source: &Source) -> Vec<Finding> {
    const BANNED: &[&str] = &[
        "Instant::now",
        "SystemTime",
        "std::thread",
        "thread::spawn",
        "std::fs",
        "std::net",
        "std::io::",
        "std::env",
        "std::process",
        "tokio",
        "HashMap",
        "HashSet",
        "RandomState",
        "getrandom",
        "RefCell",
        "Mutex",
        "RwLock",
        "async fn",
    ];
    if !SANS_IO.iter().any(|dir| in_crate(&source.path, dir)) || !source.is("rs") {
        return Vec::new();
    }
    find_lines(source, source.product_code(), |line| {
        let hit = BANNED.iter().find(|banned| has_path(line, banned))?;
        Some(format!("`{hit}` in a sans-IO crate: time, bytes and chance are arguments there"))
    })
}

fn unsafe_only_in_net(source: &Source) -> Vec<Finding> {
    if in_crate(&source.path, "net") || !source.is("rs") {
        return Vec::new();
    }
    find_lines(source, &source.code, |line| {
        has_word(line, "unsafe").then(|| "`unsafe` lives in `net` alone".into())
    })
}

fn forbid_unsafe(source: &Source) -> Vec<Finding> {
    let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|f| source.path.ends_with(f))
        || source.path.contains("src/bin/")
        || ["tests/it/main.rs", "tests/tidy.rs"].contains(&source.path.as_str());
    if !is_root || in_crate(&source.path, "net") {
        return Vec::new();
    }
    if source.code.contains("#![forbid(unsafe_code)]") {
        return Vec::new();
    }
    vec![source.at(1, "a crate root outside `net` says `#![forbid(unsafe_code)]`")]
}

fn left_over(source: &Source) -> Vec<Finding> {
    if !source.is("rs") {
        return Vec::new();
    }
    let macros = find_lines(source, &source.code, |line| {
        let hit = ["todo!", "unimplemented!", "dbg!"].into_iter().find(|m| line.contains(m))?;
        Some(format!("`{hit}` is not left in the tree"))
    });
    let mark = concat!("FIX", "ME");
    let marks = find_lines(source, &source.text, |line| {
        line.contains(mark).then(|| format!("{mark}: mend it, or file it as an issue"))
    });
    macros.into_iter().chain(marks).collect()
}

/// Only the driver joins the core to the ring; everything else in the process asks the driver, but
/// for what reads the machine.
fn net_in_src(source: &Source) -> Vec<Finding> {
    let Some(rest) = source.path.strip_prefix("src/") else { return Vec::new() };
    let allowed = ["driver", "machine.rs", "main.rs", "preflight"];
    let allowed = allowed.iter().any(|start| rest.starts_with(start));
    if allowed || !source.is("rs") {
        return Vec::new();
    }
    find_lines(source, source.product_code(), |line| {
        let crate_path = |at: usize| !line[..at].ends_with([':', '_']) && is_word_start(line, at);
        let names = line.match_indices("net::").any(|(at, _)| crate_path(at));
        names.then(|| "`net::` outside driver, machine.rs, main.rs and preflight".into())
    })
}

fn imports(source: &Source) -> Vec<Finding> {
    let Some(dir) = source.path.strip_suffix("Cargo.toml") else { return Vec::new() };
    let dir = dir.trim_end_matches('/');
    let Some((_, allowed)) = IMPORTS.iter().find(|(of, _)| *of == dir) else {
        return vec![source.at(1, format!("`{dir}` is not in the picture of who imports whom"))];
    };
    let manifest: toml::Table = match source.text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![source.at(1, format!("not TOML: {error}"))],
    };
    let mut found = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(toml::Value::Table(table)) = manifest.get(section) else { continue };
        for name in table.keys() {
            let ours = IMPORTS.iter().any(|(of, _)| !of.is_empty() && of == name);
            if ours && !allowed.contains(&name.as_str()) {
                found.push(source.at(1, format!("`{dir}` may not import `{name}` ({section})")));
            }
        }
    }
    found
}

fn one_title(source: &Source) -> Vec<Finding> {
    if !source.is("md") {
        return Vec::new();
    }
    let titles: Vec<usize> = prose_lines(&source.text)
        .filter(|(_, line)| line.starts_with("# "))
        .map(|(number, _)| number)
        .collect();
    match titles.as_slice() {
        [_] => Vec::new(),
        [] => vec![source.at(1, "a page has a title")],
        [_, second, ..] => vec![source.at(*second, "a page has exactly one title")],
    }
}

/// A lock file that names where its packages came from works nowhere else.
fn lock_url(source: &Source) -> Vec<Finding> {
    if !source.path.ends_with("package-lock.json") {
        return Vec::new();
    }
    find_lines(source, &source.text, |line| {
        line.contains("\"resolved\"")
            .then(|| "the lock names a registry: leave `resolved` out".into())
    })
}

/// Relative links of a page, checked against the paths of the repository.
fn links(source: &Source, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    if !source.is("md") {
        return Vec::new();
    }
    let dir = source.path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut found = Vec::new();
    for (number, line) in prose_lines(&source.text) {
        for (at, _) in line.match_indices("](") {
            let target = line[at + 2..].split([')', ' ']).next().unwrap_or("");
            let file = target.split('#').next().unwrap_or("");
            let elsewhere = file.contains("://") || file.starts_with("mailto:");
            if file.is_empty() || elsewhere {
                continue;
            }
            if !exists(&joined(dir, file)) {
                found.push(source.at(number, format!("the link to `{target}` leads nowhere")));
            }
        }
    }
    found
}

// ---- Reading sources ---------------------------------------------------------------------------

/// Blanks comments, strings and character literals; keeps the lines, so that numbers stay true.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + skipped_length(&bytes[at..], code.as_bytes().last().copied());
        if end == at {
            let next = text[at..].chars().next().map_or(1, char::len_utf8);
            code.push_str(&text[at..at + next]);
            at += next;
        } else {
            code.extend(bytes[at..end].iter().map(|b| if *b == b'\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    code
}

/// How many bytes from here on are a comment or a literal; 0 where code begins.
fn skipped_length(rest: &[u8], before: Option<u8>) -> usize {
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_length(rest),
        [b'"', ..] => string_length(rest),
        [b'r', b'"' | b'#', ..] if !in_word => raw_string_length(rest, 1),
        [b'b', b'r', b'"' | b'#', ..] if !in_word => raw_string_length(rest, 2),
        [b'\'', b'\\', ..] => {
            3 + rest.iter().skip(3).position(|b| *b == b'\'').map_or(0, |end| end + 1)
        }
        [b'\'', b'"' | b'/' | b'{' | b'}', b'\'', ..] => 3,
        _ => 0,
    }
}

fn block_comment_length(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

fn string_length(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string_length(rest: &[u8], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return 0;
    }
    let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let body = prefix + hashes + 1;
    let end = rest[body..].windows(close.len()).position(|w| w == close.as_slice());
    end.map_or(rest.len(), |end| body + end + close.len())
}

/// Where the test module at the foot of a file begins.
fn tests_at(code: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = code[from..].find("#[cfg(test)]").map(|at| at + from) {
        let item = code[at + "#[cfg(test)]".len()..].trim_start();
        if item.starts_with("mod ") {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

fn find_lines(source: &Source, text: &str, check: impl Fn(&str) -> Option<String>) -> Vec<Finding> {
    let findings = text.lines().enumerate().filter_map(|(at, line)| Some((at, check(line)?)));
    findings.map(|(at, what)| source.at(at + 1, what)).collect()
}

/// The lines of a page outside its code blocks, numbered from 1.
fn prose_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!in_code && !fence).then_some((at + 1, line))
    })
}

fn is_word_start(line: &str, at: usize) -> bool {
    !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Whether `line` holds `path` as whole words, be it written in full or behind a longer path.
fn has_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let after = line[at + path.len()..].chars().next();
        let open_end = path.ends_with(':');
        let ends = open_end || !after.is_some_and(|c| c.is_alphanumeric() || c == '_');
        is_word_start(line, at) && ends
    })
}

fn has_word(line: &str, word: &str) -> bool {
    has_path(line, word)
}

fn in_crate(path: &str, dir: &str) -> bool {
    path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

/// `dir` and a relative link, with `.` and `..` taken away.
fn joined(dir: &str, link: &str) -> String {
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

// ---- The repository ----------------------------------------------------------------------------

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files below the root that are ours to keep tidy: no build output, no fetched packages.
fn files() -> Vec<PathBuf> {
    const SKIPPED: &[&str] =
        &["target", ".git", "node_modules", "laelaps-data", "__pycache__", "corpus", "artifacts"];
    let mut files = Vec::new();
    let mut dirs = vec![root()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("a directory of the repository can be listed") {
            let path = entry.expect("a directory entry can be read").path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("").to_owned();
            match path.is_dir() {
                true if SKIPPED.contains(&name.as_str()) => {}
                true => dirs.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    files
}

fn relative(path: &Path) -> String {
    let inside = path.strip_prefix(root()).expect("every file lies below the root");
    inside.to_string_lossy().replace('\\', "/")
}

fn sources() -> Vec<Source> {
    let text = |path: &PathBuf| fs::read(path).ok().and_then(|b| String::from_utf8(b).ok());
    let read = |path: PathBuf| Some(Source::new(&relative(&path), &text(&path)?));
    files().into_iter().filter_map(read).collect()
}

fn report(findings: &[Finding]) -> String {
    let line = |f: &Finding| format!("  {}:{}: {}\n", f.path, f.line, f.what);
    findings.iter().map(line).collect()
}

#[test]
fn the_tree_is_tidy() {
    let sources = sources();
    assert!(sources.len() > 20, "the walk found only {} files", sources.len());
    let mut used = BTreeSet::new();
    let mut findings = Vec::new();
    for (name, rule) in RULES {
        for finding in sources.iter().flat_map(rule) {
            let relaxed =
                RELAXED.iter().position(|(r, path, _)| (r, *path) == (name, &finding.path));
            match relaxed {
                Some(at) => drop(used.insert(at)),
                None => findings.push(finding),
            }
        }
    }
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), report(&findings));
    for (at, (rule, path, _)) in RELAXED.iter().enumerate() {
        assert!(used.contains(&at), "the relaxation of `{rule}` for {path} is no longer needed");
    }
}

#[test]
fn links_resolve() {
    let root = root();
    let exists = |path: &str| root.join(path).exists();
    let findings: Vec<Finding> = sources().iter().flat_map(|s| links(s, &exists)).collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), report(&findings));
}

// ---- Each rule catches a bad sample and lets a good one pass -----------------------------------

#[cfg(test)]
mod samples {
    use super::*;

    fn check(rule: Rule, path: &str, bad: &str, good: &str) {
        let caught = rule(&Source::new(path, bad));
        assert!(!caught.is_empty(), "the rule let this pass: {bad:?}");
        let passed = rule(&Source::new(path, good));
        assert!(passed.is_empty(), "the rule stopped this: {good:?}: {passed:?}");
    }

    #[test]
    fn columns_counts_characters() {
        check(columns, "src/a.rs", &"x".repeat(101), &"ü".repeat(100));
    }

    #[test]
    fn opening_wants_module_docs() {
        check(opening, "src/a.rs", "use x;\n", "//! What it is.\n");
    }

    #[test]
    fn length_leaves_the_tests_out() {
        let lines = "let a = 1;\n".repeat(1000);
        let tests = format!("{lines}#[cfg(test)]\nmod tests {{\n{lines}}}\n");
        check(length, "src/a.rs", &format!("{lines}one more"), &tests);
    }

    #[test]
    fn file_name_says_something() {
        for path in ["src/util.rs", "net/src/helpers/ring.rs", "broker/src/common.rs"] {
            assert_eq!(file_name(&Source::new(path, "")).len(), 1, "{path}");
        }
        assert_eq!(file_name(&Source::new("src/queue.rs", "")), []);
    }

    #[test]
    fn sans_io_bans_calls_in_product_code() {
        let good = "// Instant::now\nlet s = \"std::fs\";\n#[cfg(test)]\nmod t { use std::fs; }";
        for bad in ["let now = Instant::now();", "use std::fs;", "x: std::collections::HashMap<"] {
            check(sans_io, "broker/src/a.rs", bad, good);
        }
        assert_eq!(sans_io(&Source::new("net/src/a.rs", "use std::fs;")), []);
        assert_eq!(sans_io(&Source::new("journal/tests/golden.rs", "use std::fs;")), []);
    }

    #[test]
    fn unsafe_is_found_as_a_word() {
        check(
            unsafe_only_in_net,
            "src/a.rs",
            "unsafe { f() }",
            "#![forbid(unsafe_code)] // unsafe",
        );
        assert_eq!(unsafe_only_in_net(&Source::new("net/src/ring.rs", "unsafe { f() }")), []);
    }

    #[test]
    fn forbid_unsafe_in_each_root() {
        check(forbid_unsafe, "amqp/src/lib.rs", "//! A.\n", "//! A.\n#![forbid(unsafe_code)]\n");
        assert_eq!(forbid_unsafe(&Source::new("amqp/src/frame.rs", "//! A.\n")), []);
    }

    #[test]
    fn left_over_is_found() {
        for bad in ["todo!()", "unimplemented!()", "dbg!(x)", concat!("// FIX", "ME")] {
            check(left_over, "src/a.rs", bad, "let s = \"todo!\";");
        }
    }

    #[test]
    fn net_in_src_is_the_crate_not_std() {
        let good = "use std::net::IpAddr; use tokio::net::TcpListener; subnet::x();";
        check(net_in_src, "src/admin.rs", "let r = net::Ring::new();", good);
        assert_eq!(net_in_src(&Source::new("src/driver/disk.rs", "net::Ring")), []);
    }

    #[test]
    fn imports_follow_the_picture() {
        let good = "[dependencies]\njournal.workspace = true\nbytes = \"1\"\n";
        check(imports, "broker/Cargo.toml", "[dependencies]\nnet.workspace = true\n", good);
        check(imports, "amqp/Cargo.toml", "[dev-dependencies]\nbroker = \"1\"\n", "[package]\n");
        assert_eq!(imports(&Source::new("new/Cargo.toml", "")).len(), 1, "an unknown crate");
    }

    #[test]
    fn one_title_outside_code() {
        let good = "# One\n```\n# a comment\n```\n## Two\n";
        check(one_title, "docs/a.md", "# One\n# Two\n", good);
        check(one_title, "docs/a.md", "no title\n", good);
    }

    #[test]
    fn links_lead_somewhere() {
        let page =
            Source::new("docs/a/b.md", "# T\n[x](../c.md#part) [y](https://h/) [z](gone.md)\n");
        let found = links(&page, &|path| path == "docs/c.md");
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].what.contains("gone.md"));
    }

    #[test]
    fn lock_url_is_refused() {
        let bad = "\"resolved\": \"https://somewhere/rhea.tgz\"";
        check(lock_url, "tests/clients/rhea/package-lock.json", bad, "\"integrity\": \"sha512-\"");
    }

    /// Not the rules', but the runner's: what it says of a log.
    #[test]
    fn what_failed_in_a_step_is_named() {
        let log = "
failures:

---- a::b stdout ----
    said

failures:
    a::b
    c

test result: FAILED. 1 passed; 2 failed; 0 ignored

failures:
    broker/src/lib.rs - x (line 12)
    broker/src/lib.rs - y (line 14) - compile

test result: FAILED. 0 passed; 2 failed; 0 ignored
test d ... ok
error: test failed, to rerun pass `-p broker --lib`
  process didn't exit successfully: `/t/deps/broker-0123abcd --quiet` (signal: 6, SIGABRT)
  process didn't exit successfully: `/t/deps/it-0123abcd` (exit status: 101)
";
        let path = std::env::temp_dir().join(format!("laelaps-names-{}", std::process::id()));
        fs::write(&path, log).expect("a scratch file");
        let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run");
        let said = std::process::Command::new(run).arg("--names").arg(&path).output();
        fs::remove_file(&path).expect("it was written");
        let said = String::from_utf8(said.expect("the runner runs").stdout).expect("UTF-8");
        let names = "a::b c broker/src/lib.rs - x (line 12) broker/src/lib.rs - y (line 14) - \
                     compile broker-0123abcd (signal: 6, SIGABRT)";
        assert_eq!(said.trim(), names);
    }

    #[test]
    fn code_of_blanks_literals_and_keeps_lines() {
        let text = "a /* x\n/* y */ */ \"q\\\"//\" r#\"\"z\"# 'b' '\"' '\\'' 'life c // d\ne";
        let code = code_of(text);
        assert_eq!(code.lines().count(), 3);
        for gone in ["x", "y", "q", "z", "d"] {
            assert!(!code.contains(gone), "{gone} is left in {code:?}");
        }
        for kept in ["a", "'life c", "e"] {
            assert!(code.contains(kept), "{kept} is gone from {code:?}");
        }
    }
}
