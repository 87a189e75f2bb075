//! Every request in every state before the start, with the status that a client gets.
//! What needs a running guest is tested end to end.

use std::path::Path;

use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::api::http::{HttpRequest, Method};
use crate::api::request;
use crate::cpu::thread::EndEvents;
use crate::devices::console::{Sink, console};
use crate::event_loop::EventLoop;
use crate::seccomp::Filters;

struct Nowhere;

impl std::io::Write for Nowhere {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Sink for Nowhere {
    fn ready(&self) -> bool {
        true
    }

    fn grows(&self) -> bool {
        false
    }
}

pub(super) struct Client {
    pub(super) controller: Controller,
    events: EventLoop,
    ends: EndEvents,
}

impl Client {
    pub(super) fn new() -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Self {
            controller: Controller::new("sb1".into()),
            events: EventLoop::new().unwrap(),
            ends: EndEvents {
                finished: event(),
                failed: event(),
            },
        }
    }

    pub(super) fn send(&mut self, method: Method, path: &str, body: &str) -> HttpResponse {
        let request = HttpRequest {
            method,
            path: path.into(),
            body: (!body.is_empty()).then(|| body.into()),
        };
        match request::parse(&request) {
            Ok(action) => response(&self.with_environment(|controller, environment| {
                controller.handle(action, environment)
            })),
            Err(error) => fault(StatusCode::BadRequest, &error.to_string()),
        }
    }

    pub(super) fn with_environment<T>(
        &mut self,
        act: impl FnOnce(&mut Controller, &mut Environment<'_>) -> T,
    ) -> T {
        act(
            &mut self.controller,
            &mut Environment {
                events: &mut self.events,
                console: console(Nowhere).unwrap().0,
                ends: &self.ends,
                filters: &Filters::default(),
                input_wanted: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            },
        )
    }

    pub(super) fn status(&mut self, method: Method, path: &str, body: &str) -> u16 {
        self.send(method, path, body).status as u16
    }

    pub(super) fn config(&mut self) -> serde_json::Value {
        let response = self.send(Method::Get, "/vm/config", "");
        serde_json::from_str(&response.body.unwrap()).unwrap()
    }
}

fn drive(id: &str, path: &Path) -> String {
    serde_json::json!({
        "drive_id": id, "is_root_device": false, "is_read_only": true, "path_on_host": path,
    })
    .to_string()
}

const CREATE: &str = r#"{"snapshot_type":"Full","snapshot_path":"s","mem_file_path":"m"}"#;
const LOAD: &str = r#"{"snapshot_path":"/nonexistent/state",
    "mem_backend":{"backend_type":"File","backend_path":"/nonexistent/memory"}}"#;

#[test]
fn status_of_each_request() {
    use Method::{Delete, Get, Patch, Put};
    let file = tempfile::NamedTempFile::new().unwrap();
    let kernel = serde_json::json!({ "kernel_image_path": file.path() }).to_string();
    let table: &[(Method, &str, &str, u16)] = &[
        (Get, "/", "", 200),
        (Get, "/version", "", 200),
        (Get, "/machine-config", "", 200),
        (Get, "/vm/config", "", 200),
        (Get, "/vm", "", 400),
        (Get, "/nothing", "", 400),
        (Get, "/version", "{}", 400),
        (Put, "/machine-config", "", 400),
        (Put, "/machine-config", "{", 400),
        (Put, "/machine-config", r#"{"vcpu_count":1}"#, 400),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count":2,"mem_size_mib":256}"#,
            204,
        ),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count":33,"mem_size_mib":256}"#,
            400,
        ),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count":-1,"mem_size_mib":256}"#,
            400,
        ),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":256,"x":1}"#,
            400,
        ),
        (
            Put,
            "/machine-config",
            r#"{"vcpu_count":1,"mem_size_mib":1,"cpu_template":"T2"}"#,
            400,
        ),
        (Patch, "/machine-config", "{}", 400),
        (Patch, "/machine-config", r#"{"mem_size_mib":512}"#, 204),
        (
            Patch,
            "/machine-config",
            r#"{"mem_size_mib":511,"huge_pages":"2M"}"#,
            400,
        ),
        (Put, "/boot-source", &kernel, 204),
        (
            Put,
            "/boot-source",
            r#"{"kernel_image_path":"/nonexistent"}"#,
            400,
        ),
        (Put, "/boot-source", "{}", 400),
        (Put, "/drives/data", &drive("data", file.path()), 204),
        (Put, "/drives/data", &drive("other", file.path()), 400),
        (
            Put,
            "/drives/data",
            &drive("data", Path::new("/nonexistent")),
            400,
        ),
        (Put, "/drives/da-ta", &drive("da-ta", file.path()), 400),
        (Put, "/drives/", &drive("", file.path()), 400),
        (Put, "/drives", &drive("", file.path()), 400),
        (
            Patch,
            "/drives/data",
            r#"{"drive_id":"data","path_on_host":"/x"}"#,
            400,
        ),
        (
            Put,
            "/network-interfaces/e",
            r#"{"iface_id":"e","host_dev_name":"no-such-tap"}"#,
            400,
        ),
        (
            Patch,
            "/network-interfaces/e",
            r#"{"iface_id":"e","rx_rate_limiter":{}}"#,
            400,
        ),
        (Patch, "/network-interfaces/e", r#"{"iface_id":"f"}"#, 400),
        (
            Put,
            "/network-interfaces/e",
            r#"{"iface_id":"e","host_dev_name":"far-too-long-a-name"}"#,
            400,
        ),
        (
            Put,
            "/network-interfaces/e",
            r#"{"iface_id":"e","host_dev_name":"t","guest_mac":"x"}"#,
            400,
        ),
        (Put, "/entropy", "{}", 204),
        (
            Put,
            "/entropy",
            r#"{"rate_limiter":{"ops":{"size":1,"refill_time":1}}}"#,
            400,
        ),
        (Put, "/entropy", r#"{"rate_limiter":{}}"#, 204),
        (
            Put,
            "/balloon",
            r#"{"amount_mib":0,"deflate_on_oom":false,"free_page_reporting":true}"#,
            204,
        ),
        (Put, "/balloon", "{}", 400),
        (
            Put,
            "/balloon",
            r#"{"amount_mib":64,"deflate_on_oom":false}"#,
            400,
        ),
        (
            Put,
            "/balloon",
            r#"{"amount_mib":0,"deflate_on_oom":false,"free_page_hinting":true}"#,
            400,
        ),
        (
            Put,
            "/balloon",
            r#"{"amount_mib":0,"deflate_on_oom":false,"stats_polling_interval_s":1}"#,
            400,
        ),
        (Put, "/logger", r#"{"level":"warning"}"#, 204),
        (Put, "/logger", r#"{"level":"loud"}"#, 400),
        (Put, "/logger", r#"{"log_path":"/nonexistent/log"}"#, 400),
        (
            Put,
            "/metrics",
            r#"{"metrics_path":"/nonexistent/metrics"}"#,
            400,
        ),
        (Put, "/actions", r#"{"action_type":"FlushMetrics"}"#, 400),
        (Put, "/actions", r#"{"action_type":"SendCtrlAltDel"}"#, 400),
        (Put, "/actions", r#"{"action_type":"Explode"}"#, 400),
        (Patch, "/vm", r#"{"state":"Paused"}"#, 400),
        (Patch, "/vm", r#"{"state":"Resumed"}"#, 400),
        (Patch, "/vm", r#"{"state":"Running"}"#, 400),
        (Delete, "/drives/data", "", 400),
        (Get, "/snapshot/create", "", 400),
        (Put, "/snapshot", "{}", 400),
        (Put, "/snapshot/other", "{}", 400),
        (Put, "/snapshot/create", "", 400),
        (Put, "/snapshot/create", "{}", 400),
        (Put, "/snapshot/create", CREATE, 400),
        (
            Put,
            "/snapshot/create",
            r#"{"snapshot_type":"Half","snapshot_path":"s","mem_file_path":"m"}"#,
            400,
        ),
        (Put, "/snapshot/load", "{}", 400),
        (Put, "/snapshot/load", LOAD, 400),
        (Patch, "/snapshot/load", LOAD, 400),
    ];
    let mut client = Client::new();
    for (method, path, body, status) in table {
        assert_eq!(
            client.status(*method, path, body),
            *status,
            "{method:?} {path} {body}"
        );
    }
}

#[test]
fn drive_limits_are_set_and_changed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut client = Client::new();
    let mut body: serde_json::Value = serde_json::from_str(&drive("data", file.path())).unwrap();
    body["rate_limiter"] = serde_json::json!({
        "bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 100},
        "ops": {"size": 0, "refill_time": 100},
    });
    let put = client.status(Method::Put, "/drives/data", &body.to_string());
    assert_eq!(put, 204);
    let bandwidth = body["rate_limiter"]["bandwidth"].clone();
    let limits = |client: &mut Client| client.config()["drives"][0]["rate_limiter"].clone();
    assert_eq!(
        limits(&mut client),
        serde_json::json!({"bandwidth": bandwidth, "ops": null})
    );
    let ops = serde_json::json!({"size": 7, "one_time_burst": null, "refill_time": 1000});
    for (update, expected) in [
        (
            serde_json::json!({"ops": ops}),
            serde_json::json!({"bandwidth": bandwidth, "ops": ops}),
        ),
        (
            serde_json::json!({"bandwidth": {"size": 0, "refill_time": 0}}),
            serde_json::json!({"bandwidth": null, "ops": ops}),
        ),
        (
            serde_json::json!({}),
            serde_json::json!({"bandwidth": null, "ops": ops}),
        ),
        (
            serde_json::json!({"ops": {"size": 0, "refill_time": 1}}),
            serde_json::Value::Null,
        ),
    ] {
        let update = serde_json::json!({"drive_id": "data", "rate_limiter": update});
        let patch = client.status(Method::Patch, "/drives/data", &update.to_string());
        assert_eq!((patch, limits(&mut client)), (204, expected), "{update}");
    }
}

#[test]
fn malformed_limits_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut client = Client::new();
    let body = drive("data", file.path());
    assert_eq!(client.status(Method::Put, "/drives/data", &body), 204);
    let before = client.config();
    for limits in [
        r#"{"bandwidth":{"size":-1,"refill_time":1}}"#,
        r#"{"bandwidth":{"size":1.5,"refill_time":1}}"#,
        r#"{"bandwidth":{"size":1}}"#,
        r#"{"bandwidth":{"refill_time":1}}"#,
        r#"{"bandwidth":{"size":1,"refill_time":1,"burst":1}}"#,
        r#"{"bandwidth":1}"#,
        r#"{"bytes":{"size":1,"refill_time":1}}"#,
        r#"{"ops":{"size":18446744073709551616,"refill_time":1}}"#,
        "1",
    ] {
        let update = format!(r#"{{"drive_id":"data","rate_limiter":{limits}}}"#);
        assert_eq!(
            client.status(Method::Patch, "/drives/data", &update),
            400,
            "{limits}"
        );
        let update = format!(r#"{{"iface_id":"e","tx_rate_limiter":{limits}}}"#);
        let response = client.send(Method::Patch, "/network-interfaces/e", &update);
        let text = response.body.unwrap();
        assert!(text.contains("deserializing"), "{limits}: {text}");
    }
    let other = r#"{"drive_id":"other","rate_limiter":{}}"#;
    assert_eq!(client.status(Method::Patch, "/drives/other", other), 400);
    assert_eq!(client.config(), before);
}

#[test]
fn refused_requests_change_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut client = Client::new();
    let body = drive("data", file.path());
    assert_eq!(client.status(Method::Put, "/drives/data", &body), 204);
    let before = client.config();
    for (path, body) in [
        ("/machine-config", r#"{"vcpu_count":0,"mem_size_mib":64}"#),
        ("/boot-source", r#"{"kernel_image_path":"/nonexistent"}"#),
        (
            "/drives/data",
            r#"{"drive_id":"data","is_root_device":true,"path_on_host":"/none"}"#,
        ),
        (
            "/drives/data",
            r#"{"drive_id":"data","is_root_device":true}"#,
        ),
        ("/actions", r#"{"action_type":"InstanceStart"}"#),
    ] {
        assert_eq!(client.status(Method::Put, path, body), 400, "{path}");
        assert_eq!(client.config(), before, "{path}");
    }
}

#[test]
fn start_without_a_kernel_says_so_and_may_be_repeated() {
    let mut client = Client::new();
    for _ in 0..2 {
        let response = client.send(
            Method::Put,
            "/actions",
            r#"{"action_type":"InstanceStart"}"#,
        );
        assert_eq!(
            response.body.unwrap(),
            r#"{"fault_message":"Start microvm error: Cannot start microvm without kernel configuration."}"#
        );
    }
    let info = client.send(Method::Get, "/", "").body.unwrap();
    assert!(
        info.contains(r#""id":"sb1","state":"Not started""#),
        "{info}"
    );
}

#[test]
fn error_text_holds_each_cause_once() {
    let mut client = Client::new();
    let body = r#"{"kernel_image_path":"/nonexistent"}"#;
    let text = client.send(Method::Put, "/boot-source", body).body.unwrap();
    assert_eq!(
        text,
        "{\"fault_message\":\"Boot source error: The kernel file cannot be opened: \
         /nonexistent: No such file or directory (os error 2)\"}"
    );
}

pub(super) fn fault_of(client: &mut Client, path: &str, body: &str) -> String {
    let response = client.send(Method::Put, path, body);
    assert_eq!(response.status, StatusCode::BadRequest);
    let body: serde_json::Value = serde_json::from_str(&response.body.unwrap()).unwrap();
    body["fault_message"].as_str().unwrap().to_owned()
}

#[test]
fn snapshot_of_nothing_is_refused_as_firecracker_does() {
    assert_eq!(
        fault_of(&mut Client::new(), "/snapshot/create", CREATE),
        "The requested operation is not supported before starting the microVM."
    );
}

#[test]
fn load_comes_before_configuration_and_a_failed_one_changes_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut client = Client::new();
    for _ in 0..2 {
        let fault = fault_of(&mut client, "/snapshot/load", LOAD);
        assert!(fault.starts_with("Load snapshot error:"), "{fault}");
        assert!(fault.contains("/nonexistent/state"), "{fault}");
    }
    let info = client.send(Method::Get, "/", "").body.unwrap();
    assert!(info.contains("Not started"), "{info}");
    // Log and metrics belong to the process.
    assert_eq!(client.status(Method::Put, "/logger", "{}"), 204);
    assert!(fault_of(&mut client, "/snapshot/load", LOAD).contains("/nonexistent/state"));

    let body = drive("data", file.path());
    assert_eq!(client.status(Method::Put, "/drives/data", &body), 204);
    assert_eq!(
        fault_of(&mut client, "/snapshot/load", LOAD),
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring \
         boot-specific resources."
    );
}

#[test]
fn file_that_is_no_state_is_refused_with_the_reason() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, &[1; 1000]).unwrap();
    let body = serde_json::json!({
        "snapshot_path": file.path(),
        "mem_backend": {"backend_type": "File", "backend_path": "/nonexistent"},
    });
    let fault = fault_of(&mut Client::new(), "/snapshot/load", &body.to_string());
    assert!(fault.contains("no state file of wrenn-vmm"), "{fault}");
}
