//! `docs/internals/amqp-conformance.md` says which test shows what; this one, that it is true.
//!
//! Invariants: the table has each of its 49 entries once, in order; each test that it names is one
//! that runs: alone, or in the step of `tests/run` that its `#[ignore]` names; an entry without a
//! test says that it is open or not built.

use std::fs;
use std::path::Path;

const ENTRIES: usize = 49;

#[test]
fn each_entry_is_there_and_each_test_it_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/internals/amqp-conformance.md"))
        .expect("the page can be read");
    let mut sources = String::new();
    for dir in ["amqp/src", "amqp/tests", "broker/src", "broker/tests", "tests/it"] {
        read_sources(&root.join(dir), &mut sources);
    }
    let run = fs::read_to_string(root.join("tests/run")).expect("the script can be read");
    let (_, steps) = run.split_once("\nsteps=(").expect("it lists its steps");
    let steps: Vec<&str> = steps.split(')').next().unwrap_or("").split_whitespace().collect();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .filter(|cells: &Vec<&str>| cells.len() == 4 && cells[0].parse::<usize>().is_ok())
        .collect();
    let numbers: Vec<usize> = rows.iter().filter_map(|cells| cells[0].parse().ok()).collect();
    assert_eq!(numbers, (1..=ENTRIES).collect::<Vec<_>>());
    for cells in rows {
        let names: Vec<&str> = cells[3].split('`').skip(1).step_by(2).collect();
        let excused = cells[2].contains("**open**") || cells[2].contains("not built");
        assert!(!names.is_empty() || excused, "entry {} has no test and no reason", cells[0]);
        for name in names {
            assert!(runs(&sources, name, &steps), "entry {}: no test {name} that runs", cells[0]);
        }
    }
}

/// Whether a function of this name is a test that something runs.
fn runs(sources: &str, name: &str, steps: &[&str]) -> bool {
    let Some(at) = sources.find(&format!("fn {name}()")) else { return false };
    // What stands on the lines before it, up to one that is no attribute and no comment.
    let before = sources[..at].lines().rev().skip_while(|line| line.trim().is_empty());
    let attributes: Vec<&str> =
        before.map(str::trim).take_while(|line| line.starts_with(['#', '/'])).collect();
    let ignored = attributes.iter().find(|line| line.starts_with("#[ignore"));
    attributes.contains(&"#[test]")
        && ignored.is_none_or(|line| step(line).is_some_and(|step| steps.contains(&step)))
}

/// The step that the reason of an `#[ignore]` names.
fn step(line: &str) -> Option<&str> {
    let (_, named) = line.split_once("tests/run ")?;
    named.split(['"', ' ', ';', ',']).next()
}

#[test]
fn a_name_alone_is_not_a_test() {
    let sources = [
        "#[test]\n    fn runs() {",
        "fn helps() {",
        "#[test]\n#[ignore]\nfn never() {",
        "#[test]\n#[ignore = \"slow: tests/run seeds\"]\nfn in_a_step() {",
        "#[test]\n#[ignore = \"slow: tests/run nothing\"]\nfn in_none() {",
        "#[test]\nfn other() {}\n\nfn behind_one() {",
    ];
    let sources = sources.join("\n}\n\n");
    let names = ["runs", "helps", "never", "in_a_step", "in_none", "behind_one", "missing"];
    let found = names.map(|name| runs(&sources, name, &["seeds"]));
    assert_eq!(found, [true, false, false, true, false, false, false]);
}

fn read_sources(dir: &Path, sources: &mut String) {
    for entry in fs::read_dir(dir).expect("a directory of the tree") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path).expect("a source can be read"));
        }
    }
}
