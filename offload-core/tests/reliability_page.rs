//! The page on reliability names tests that exist.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::fs;
use std::path::Path;

/// Whether a file has a test of this name that is run, in or out of a `proptest!`.
fn is_test(text: &str, name: &str) -> bool {
    let Some(at) = text.find(&format!("fn {name}(")) else {
        return false;
    };
    let attributes = text[..at].trim_end().lines().rev().map(str::trim);
    let attributes: Vec<_> = attributes
        .take_while(|line| line.starts_with("#[") || line.starts_with("//"))
        .collect();
    attributes.contains(&"#[test]") && !attributes.iter().any(|line| line.starts_with("#[ignore"))
}

#[test]
fn every_test_that_the_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| "));
    let (mut files, mut tests) = (0, 0);
    for row in rows {
        let cell = row.rsplit('|').nth(1).unwrap();
        let mut text = String::new();
        // Odd pieces are in backquotes.
        for name in cell.split('`').skip(1).step_by(2) {
            if name.ends_with(".rs") {
                let own = root.join("offload-core/tests").join(name);
                let path = if own.is_file() { own } else { root.join(name) };
                text = fs::read_to_string(&path).unwrap_or_else(|_| panic!("there is no {name}"));
                files += 1;
            } else if name.contains('_') {
                assert!(is_test(&text, name), "no test {name}: {row}");
                tests += 1;
            }
        }
    }
    assert!(files > 20 && tests > 30, "{files} files, {tests} tests");
}
