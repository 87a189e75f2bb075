//! Pages that want no credential.

use reqwest::Method;

use crate::client::Api;

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_served_without_credential() {
    let api = Api::start().await;
    for (path, kind, words) in [
        ("/healthz", "text/plain", "ok"),
        ("/readyz", "text/plain", "ok"),
        ("/openapi.yaml", "application/yaml", "openapi: 3.1.0"),
        (
            "/openapi.json",
            "application/json",
            "\"openapi\": \"3.1.0\"",
        ),
        ("/test", "text/html", "<title>Wrenn: test page</title>"),
        ("/docs/", "text/html", "swagger-ui"),
        ("/docs/swagger-ui-bundle.js", "javascript", "SwaggerUI"),
        ("/v1/server", "application/json", "\"version\""),
    ] {
        let answer = api.send(api.anonymous(Method::GET, path)).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let got = answer.headers["content-type"].to_str().unwrap();
        assert!(got.contains(kind), "{path}: {got}");
        assert!(answer.text().contains(words), "{path}");
        assert!(answer.headers.contains_key("x-request-id"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_load_nothing_from_elsewhere() {
    let api = Api::start().await;
    for path in ["/test", "/docs/", "/docs/swagger-initializer.js"] {
        let text = api.send(api.anonymous(Method::GET, path)).await.text();
        for word in ["src=\"http", "href=\"http", "@import", "url(http"] {
            assert!(!text.contains(word), "{path} has {word}");
        }
    }
    let page = api.send(api.anonymous(Method::GET, "/test")).await;
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
}
