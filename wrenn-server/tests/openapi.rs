//! The description of the API is a golden file: a change of the surface shows in review.
//!
//! `WRENN_BLESS=1 cargo nextest run -p wrenn-server --test openapi` writes it anew.

use std::path::Path;

use wrenn_server::openapi;

#[test]
fn description_matches_golden() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.yaml");
    let now = openapi::yaml();
    if std::env::var_os("WRENN_BLESS").is_some() {
        std::fs::write(&golden, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&golden).unwrap_or_default();
    assert!(
        kept == now,
        "the API has changed; WRENN_BLESS=1 writes wrenn-server/openapi.yaml anew"
    );
}

#[test]
fn every_operation_has_summary_and_error() {
    let document: serde_json::Value = serde_json::from_str(&openapi::json()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            operations += 1;
            let name = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{name} has no summary");
            assert!(operation["operationId"].is_string(), "{name} has no id");
            assert!(
                operation["responses"]["default"].is_object() || path == "/v1/server",
                "{name} describes no error"
            );
        }
    }
    assert!(operations > 35, "{operations}");
}
