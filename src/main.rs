//! The laelaps process.
fn main() {}
