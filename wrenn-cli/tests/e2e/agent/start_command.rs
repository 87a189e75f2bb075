//! What a template has each of its sandboxes do.

use std::fs;
use std::path::PathBuf;

use wrenn_core::SandboxId;
use wrenn_core::sandbox::START_TAG;
use wrenn_proto::hostagent::{
    CreateSandboxRequest, DestroySandboxRequest, ListProcessesRequest, list_processes_response,
};

use super::stage::{TestAgent, enter, small};
use crate::stage::{self, MINIMAL, until};

/// A template like the small one, but for its start command, while a test lasts.
struct Template {
    name: String,
    directory: PathBuf,
}

impl Template {
    fn that_starts(line: &str) -> Self {
        let templates = stage::root().templates();
        let name = format!("e2e-{}", SandboxId::random());
        let directory = templates.join(&name);
        let original = templates.join(MINIMAL);
        let text = fs::read(original.join("template.json")).unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let image = manifest["rootfs"].as_str().unwrap().to_owned();
        manifest["name"] = name.as_str().into();
        manifest["start_command"] = line.into();
        manifest["env"]["GREETING"] = "hello".into();
        manifest["working_directory"] = "/tmp".into();
        fs::create_dir(&directory).unwrap();
        fs::hard_link(original.join(&image), directory.join(&image)).unwrap();
        fs::write(directory.join("template.json"), manifest.to_string()).unwrap();
        Self { name, directory }
    }
}

impl Drop for Template {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

async fn create(agent: &TestAgent, template: &Template) -> String {
    let request = CreateSandboxRequest {
        template: template.name.clone(),
        ..small()
    };
    let answer = agent.client().create_sandbox(request).await.unwrap();
    answer.into_owned().sandbox.into_option().unwrap().id
}

async fn processes(agent: &TestAgent, id: &str) -> Vec<list_processes_response::Process> {
    let request = ListProcessesRequest { id: id.to_owned() };
    let answer = agent.client().list_processes(request).await.unwrap();
    answer.into_owned().processes
}

#[test]
fn a_templates_command_runs_in_each_of_its_sandboxes() {
    enter(|agent| async move {
        let line = "echo $GREETING from $(id -un) in $PWD > /tmp/said; while :; do sleep 1; done";
        let template = Template::that_starts(line);
        let id = create(&agent, &template).await;
        let running = processes(&agent, &id).await;
        assert_eq!(running.len(), 1, "{running:?}");
        assert_eq!(running[0].tag, START_TAG);
        until("the command has spoken", || async {
            let said = agent.exec(&id, "cat /tmp/said").await.unwrap();
            &said.stdout[..] == b"hello from user in /tmp\n"
        })
        .await;
        // It belongs to nobody's connection, and other commands run beside it.
        assert_eq!(processes(&agent, &id).await.len(), 1);
        let request = DestroySandboxRequest { id };
        agent.client().destroy_sandbox(request).await.unwrap();
    });
}

#[test]
fn a_command_that_ends_or_fails_leaves_the_sandbox() {
    enter(|agent| async move {
        let template = Template::that_starts("no-such-program");
        let id = create(&agent, &template).await;
        until("the command has ended", || async {
            processes(&agent, &id).await.is_empty()
        })
        .await;
        assert_eq!(agent.shell(&id, "echo here").await, "here");
        let request = DestroySandboxRequest { id };
        agent.client().destroy_sandbox(request).await.unwrap();
    });
}
