//! Generated pages, and the test that keeps them fresh.
//!
//! A page that a table in the code can write is written by it: `cargo test` compares the checked-in
//! page with the generated one and fails when they differ. `LAELAPS_BLESS=1 cargo test --bin
//! laelaps` writes the pages anew.

use std::path::Path;

/// Fail unless the file `path` of the repository is `page`; write it first if blessing was asked
/// for.
pub(crate) fn assert_fresh(path: &str, page: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("LAELAPS_BLESS").is_some() {
        std::fs::write(&file, page).expect("the page can be written");
    }
    let there = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        there == page,
        "{path} is stale: run `LAELAPS_BLESS=1 cargo test --bin laelaps` and look at the change"
    );
}
