//! `docs/internals/amqp-conformance.md` says which test shows what; this one, that it is true.
//!
//! Invariants: the table has each of its 49 entries once, in order; each test that it names is a
//! function of the tree; an entry without a test says that it is open or not built.

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
            let function = format!("fn {name}()");
            assert!(sources.contains(&function), "entry {}: there is no test {name}", cells[0]);
        }
    }
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
