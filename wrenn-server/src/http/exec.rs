//! Commands that run to their end, processes and metrics.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use wrenn_api::error::ErrorBody;
use wrenn_api::exec::{Encoding, Exec, ExecResult, MAX_EXEC_BYTES, Process, Processes, Started};
use wrenn_api::sandbox::Metrics;
use wrenn_api::stream::Start;
use wrenn_proto::hostagent::{
    Command, ExecRequest, ExitStatus, GetMetricsRequest, ListProcessesRequest,
    SignalProcessRequest, TerminalSize,
};

use super::authentication::Caller;
use super::error::HttpError;
use super::exec_stream::Command as FollowedCommand;
use super::extract::{Body, Path, Query};
use crate::hosts::convert;
use crate::service::App;
use crate::service::error::ServiceError;

const SIGKILL: u32 = 9;

type Answered<T> = Result<T, HttpError>;

/// The host's command for a request.
pub(crate) fn command(start: Start) -> Answered<Command> {
    if start.cmd.is_empty() {
        return Err(HttpError::invalid("'cmd' is empty; name a program"));
    }
    Ok(Command {
        program: start.cmd,
        args: start.args,
        env: start.env.into_iter().collect(),
        cwd: start.cwd,
        user: start.user,
        terminal: start
            .tty
            .map(|size| TerminalSize {
                cols: size.cols.into(),
                rows: size.rows.into(),
            })
            .into(),
        stdin: start.stdin,
        tag: start.tag,
        timeout_sec: start.timeout_sec,
    })
}

/// Run a command
///
/// To its end, with up to 16 MiB of output; there is a stream for more. With `background` the
/// answer comes as soon as it has started.
#[utoipa::path(
    post, path = "/v1/sandboxes/{id}/exec", tag = "exec",
    params(("id" = String, Path, description = "Id or name")),
    request_body = Exec,
    responses(
        (status = 200, body = ExecResult),
        (status = 202, body = Started),
        (status = "default", body = ErrorBody),
    )
)]
pub(crate) async fn exec(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    Body(body, _): Body<Exec>,
) -> Answered<Response> {
    let stdin = STANDARD
        .decode(&body.stdin)
        .map_err(|_| HttpError::invalid("'stdin' is not base64"))?;
    if stdin.len() > MAX_EXEC_BYTES {
        return Err(ServiceError::TooLarge(format!(
            "'stdin' has more than {} MiB; use exec/stream for more",
            MAX_EXEC_BYTES >> 20
        ))
        .into());
    }
    let command = command(Start {
        cmd: body.cmd,
        args: body.args,
        env: body.env,
        cwd: body.cwd,
        user: body.user,
        tty: None,
        stdin: !stdin.is_empty(),
        tag: body.tag,
        timeout_sec: body.timeout_sec,
    })?;
    let (sandbox, host) = app.running(&team, &id).await?;
    if body.background {
        if !stdin.is_empty() {
            return Err(HttpError::invalid(
                "'stdin' cannot be given to a command in the background; use exec/stream",
            ));
        }
        let tag = command.tag.clone();
        let started = FollowedCommand::start(&sandbox.id, &host, command).await?;
        let pid = started.pid;
        return Ok((StatusCode::ACCEPTED, Json(Started { pid, tag })).into_response());
    }
    let begun = Instant::now();
    let request = ExecRequest {
        id: sandbox.id.to_string(),
        command: Some(command).into(),
        stdin: stdin.into(),
    };
    let answer = match host.calls.exec(request).await {
        Ok(answer) => answer.into_owned(),
        Err(error) => match ServiceError::of_host(&sandbox.id, error.into()) {
            ServiceError::CommandNotStarted { exit_code, message } => {
                return Ok(Json(not_started(exit_code, &message)).into_response());
            }
            error => return Err(error.into()),
        },
    };
    let exit = answer.exit.into_option().unwrap_or_default();
    let duration_ms = (begun.elapsed().as_secs_f64() * 1e6).round() / 1e3;
    Ok(Json(result(&answer.stdout, &answer.stderr, &exit, duration_ms)).into_response())
}

/// A command that was not found, or is no program: as a shell says it.
fn not_started(exit_code: i32, message: &str) -> ExecResult {
    ExecResult {
        stdout: String::new(),
        stderr: format!("{message}\n"),
        encoding: Encoding::Utf8,
        exit_code,
        signal: None,
        timed_out: false,
        duration_ms: 0.0,
    }
}

fn result(stdout: &Bytes, stderr: &Bytes, exit: &ExitStatus, duration_ms: f64) -> ExecResult {
    let texts = (std::str::from_utf8(stdout), std::str::from_utf8(stderr));
    let (stdout, stderr, encoding) = match texts {
        (Ok(stdout), Ok(stderr)) => (stdout.to_owned(), stderr.to_owned(), Encoding::Utf8),
        _ => (
            STANDARD.encode(stdout),
            STANDARD.encode(stderr),
            Encoding::Base64,
        ),
    };
    ExecResult {
        stdout,
        stderr,
        encoding,
        exit_code: exit.code,
        signal: (exit.signal > 0).then_some(exit.signal),
        timed_out: exit.timed_out,
        duration_ms,
    }
}

/// List processes
///
/// Those that were started through the API and have not ended.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/processes", tag = "exec",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 200, body = Processes), (status = "default", body = ErrorBody))
)]
pub(crate) async fn list_processes(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
) -> Answered<Json<Processes>> {
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = ListProcessesRequest {
        id: sandbox.id.to_string(),
    };
    let listed = host.calls.list_processes(request).await;
    let listed = listed
        .map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?
        .into_owned();
    let items = listed.processes.into_iter().map(|process| Process {
        pid: process.pid,
        cmd: process.program,
        args: process.args,
        tag: process.tag,
        tty: process.terminal,
    });
    Ok(Json(Processes {
        items: items.collect(),
    }))
}

/// A process by its number, or by its tag.
pub(crate) fn selector(process: &str) -> (u32, String) {
    match process.parse() {
        Ok(pid) => (pid, String::new()),
        Err(_) => (0, process.to_owned()),
    }
}

/// Send a signal to a process
///
/// And to its whole process group; SIGKILL unless another one is named.
#[utoipa::path(
    delete, path = "/v1/sandboxes/{id}/processes/{process}", tag = "exec",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("process" = String, Path, description = "Process id or tag"),
        ("signal" = Option<u32>, Query, description = "A signal's number; 9 unless set", minimum = 1, maximum = 64),
    ),
    responses((status = 204), (status = "default", body = ErrorBody))
)]
pub(crate) async fn signal_process(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path((id, process)): Path<(String, String)>,
    mut query: Query,
) -> Answered<StatusCode> {
    let signal = query
        .parse("signal", "a signal's number")?
        .unwrap_or(SIGKILL);
    query.finish()?;
    let (sandbox, host) = app.running(&team, &id).await?;
    let (pid, tag) = selector(&process);
    let request = SignalProcessRequest {
        id: sandbox.id.to_string(),
        pid,
        tag,
        signal,
    };
    let sent = host.calls.signal_process(request).await;
    sent.map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a sandbox uses
///
/// Looking at it is no use of it.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/metrics", tag = "sandboxes",
    params(("id" = String, Path, description = "Id or name")),
    responses((status = 200, body = Metrics), (status = "default", body = ErrorBody))
)]
pub(crate) async fn metrics(
    State(app): State<Arc<App>>,
    Caller(team): Caller,
    Path(id): Path<String>,
    query: Query,
) -> Answered<Json<Metrics>> {
    query.finish()?;
    let (sandbox, host) = app.running(&team, &id).await?;
    let request = GetMetricsRequest {
        id: sandbox.id.to_string(),
    };
    let said = host.calls.get_metrics(request).await;
    let said = said.map_err(|error| ServiceError::of_host(&sandbox.id, error.into()))?;
    Ok(Json(Metrics {
        points: vec![convert::metrics(&said.into_owned(), app.clock.now())],
    }))
}
