//! The table of options in docs/server.md is the one that the program has.

use std::path::Path;

use wrenn_server::program::reference_table;

const BEGIN: &str = "<!-- options: written by `WRENN_BLESS=1 cargo nextest run -p wrenn-server --test config` -->\n";
const END: &str = "<!-- end of options -->";

#[test]
fn reference_table_matches_options() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/server.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the page has the mark");
    let (table, after) = rest.split_once(END).expect("the page has its end");
    let wanted = reference_table();
    if std::env::var_os("WRENN_BLESS").is_some() {
        std::fs::write(&page, format!("{before}{BEGIN}{wanted}{END}{after}")).unwrap();
        return;
    }
    assert!(
        table == wanted,
        "docs/server.md is not up to date; WRENN_BLESS=1 writes it"
    );
}
