use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use wrenn_core::fleet::Refusal;
use wrenn_core::network::LeaseError;
use wrenn_core::sandbox::State;
use wrenn_core::vm::{Resources, WrittenBy};
use wrenn_proto::buffa::Enumeration as _;

use super::*;

const ID: &str = "sbaaaaaaaaaaaaaaaaaaaa";

fn lost() -> io::Error {
    io::Error::other("a secret path")
}

fn rpc(code: RpcCode, message: &str) -> GuestError {
    GuestError::Rpc {
        what: "reading a file",
        code,
        reason: None,
        message: message.to_owned(),
    }
}

fn because(code: RpcCode, reason: Reason, message: &str) -> GuestError {
    GuestError::Rpc {
        what: "starting a command",
        code,
        reason: Some(reason),
        message: message.to_owned(),
    }
}

fn status(status: u16) -> GuestError {
    GuestError::Status {
        what: "writing a file",
        status,
        message: "cannot write '/x'".to_owned(),
    }
}

/// Every answer that a caller can meet, but for those that differ in a number only.
#[test]
fn every_error_has_its_code_and_its_sentence() {
    let id = || ID.parse::<SandboxId>().unwrap();
    let failed = |error: CreateSandboxError| CreateError::Failed(Arc::new(error)).answer();
    let resume = |error: ResumeError| {
        let (id, source) = (id(), Arc::new(error));
        ResumeRefused::Failed { id, source }.answer()
    };
    let secret = || PathBuf::from("/secret");
    let answers = [
        InvalidSandboxId("x".repeat(1000)).answer(),
        CreateError::Exists(id()).answer(),
        CreateError::Refused(Refusal::Sandboxes(2)).answer(),
        CreateError::Destroyed(id()).answer(),
        failed(OpenTemplateError::Name("a/b".to_owned()).into()),
        failed(
            OpenTemplateError::Unknown {
                name: "nope".to_owned(),
                directory: secret(),
                present: vec!["base".to_owned(), "minimal".to_owned()],
            }
            .into(),
        ),
        failed(
            OpenTemplateError::Read {
                path: secret(),
                source: lost(),
            }
            .into(),
        ),
        failed(CreateSandboxError::Memory {
            asked_mib: 9,
            available_mib: 8,
        }),
        failed(CreateSandboxError::Disk(
            CopyDiskError::NoSpace { path: secret() }.into(),
        )),
        failed(CreateSandboxError::Disk(
            CopyDiskError::Copy {
                path: secret(),
                source: lost(),
            }
            .into(),
        )),
        failed(CreateSandboxError::Slot(
            LeaseError::Full { capacity: 2 }.into(),
        )),
        failed(CreateSandboxError::Thread),
        failed(
            OpenTemplateError::UnknownKernel {
                id: "k9".to_owned(),
                directory: secret(),
                present: Vec::new(),
            }
            .into(),
        ),
        failed(CreateSandboxError::Resources {
            has: Resources::new(1, 128).unwrap(),
            asked: Resources::new(2, 256).unwrap(),
        }),
        failed(CreateSandboxError::Snapshot(RecordError::Read {
            path: secret(),
            source: lost(),
        })),
        failed(CreateSandboxError::Restore(Box::new(ResumeError::NoBuild))),
        failed(CreateSandboxError::Restore(Box::new(ResumeError::Thread))),
        failed(CreateSandboxError::Silent {
            deadline: Duration::from_secs(60),
            console: "secret".to_owned(),
        }),
        failed(CreateSandboxError::Restore(Box::new(
            GreetError::Deadline(Duration::from_secs(60)).into(),
        ))),
        FreezeRefused::State {
            id: id(),
            state: State::Error,
            reason: Some("its VM ended (signal 9)".to_owned()),
        }
        .answer(),
        FreezeRefused::Failed {
            id: id(),
            source: Arc::new(CaptureError::Thread.into()),
        }
        .answer(),
        FreezeRefused::Paused {
            id: id(),
            source: Arc::new(ResumeError::NoBuild),
        }
        .answer(),
        NameSnapshotError::Name("x".repeat(1000)).answer(),
        NameSnapshotError::Taken("base".to_owned()).answer(),
        NameSnapshotError::Write {
            path: secret(),
            source: lost(),
        }
        .answer(),
        DeleteSnapshotError::Unknown {
            name: "x".repeat(1000),
            directory: secret(),
        }
        .answer(),
        DeleteSnapshotError::Remove {
            path: secret(),
            source: lost(),
        }
        .answer(),
        NotRunning {
            id: id(),
            state: State::Error,
            reason: Some("its VM ended (signal 9)".to_owned()),
        }
        .answer(),
        PauseRefused::State {
            id: id(),
            state: State::Error,
            reason: Some("its VM ended (signal 9)".to_owned()),
        }
        .answer(),
        PauseRefused::Failed {
            id: id(),
            source: Arc::new(CaptureError::Thread.into()),
        }
        .answer(),
        ResumeRefused::State {
            id: id(),
            state: State::Stopped,
            reason: None,
        }
        .answer(),
        resume(ResumeError::NoBuild),
        resume(ResumeError::Prepare(CreateSandboxError::Memory {
            asked_mib: 9,
            available_mib: 8,
        })),
        resume(ResumeError::Vm(StartVmError::OtherVmm {
            wrote: WrittenBy {
                vmm: "one".to_owned(),
                version: "1".to_owned(),
            },
            has: "another".to_owned(),
            version: "2".to_owned(),
        })),
        resume(ResumeError::Thread),
        resume(GreetError::Deadline(Duration::from_secs(60)).into()),
        resume(GreetError::Refused(status(500)).into()),
        resume(GreetError::Cancelled.into()),
        ResumeRefused::Broken {
            id: id(),
            source: Arc::new(ResumeError::Thread),
        }
        .answer(),
        DestroyRefused::Left(id()).answer(),
        rpc(RpcCode::NotFound, "cannot stat '/x'").answer(),
        rpc(RpcCode::Unauthenticated, "no user 'x'").answer(),
        rpc(RpcCode::FailedPrecondition, "it is closed").answer(),
        rpc(RpcCode::Internal, "broken").answer(),
        because(
            RpcCode::InvalidArgument,
            Reason::REASON_COMMAND_NOT_FOUND,
            "cannot start 'x'",
        )
        .answer(),
        because(
            RpcCode::InvalidArgument,
            Reason::REASON_COMMAND_NOT_EXECUTABLE,
            "cannot start '/x'",
        )
        .answer(),
        because(
            RpcCode::NotFound,
            Reason::REASON_PROCESS_NOT_FOUND,
            "process with pid 7 not found",
        )
        .answer(),
        // A guest that says what only a host can know.
        because(
            RpcCode::NotFound,
            Reason::REASON_SANDBOX_NOT_FOUND,
            "there is no sandbox",
        )
        .answer(),
        status(404).answer(),
        status(416).answer(),
        status(507).answer(),
        status(403).answer(),
        GuestError::Transport {
            what: "writing a file",
            source: lost(),
        }
        .answer(),
        GuestError::Local {
            what: "read",
            source: lost(),
        }
        .answer(),
    ];
    let text: String = answers
        .iter()
        .map(|answer| {
            let reason = answer.reason.proto_name().trim_start_matches("REASON_");
            let state = answer.state.map_or_else(String::new, |state| {
                format!(" {}", state.proto_name().trim_start_matches("STATE_"))
            });
            let (code, message) = (answer.code.as_str(), &answer.message);
            format!("{code} [{reason}{state}]: {message}\n")
        })
        .collect();
    if std::env::var_os("WRENN_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/errors.txt");
        std::fs::write(path, &text).unwrap();
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/errors.txt");
    assert_eq!(text, std::fs::read_to_string(golden).unwrap());
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn a_guests_words_are_bounded() {
    let answer = rpc(RpcCode::NotFound, &"ü".repeat(5000)).answer();
    assert!(answer.message.len() <= MAX_GUEST_WORDS);
    assert_eq!(cut("aü", 2), "a");
}
