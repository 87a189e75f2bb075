//! The process: starts the threads, then lives in the main loop.
//!
//! ```text
//! main    event loop: API actions, network, entropy, console, the machine's end
//! api     HTTP on the Unix socket
//! vcpuN   one for each vCPU
//! driveN  one for each drive
//! balloon the balloon, if there is one
//! ```

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::api::controller::{ActionError, Answer, Controller, chain};
use crate::api::request::Action;
use crate::api::server::{ApiServer, Channel};
use crate::arguments::Arguments;
use crate::config::{MetricsConfig, VmConfig};
use crate::cpu::thread::EndEvents;
use crate::devices::console::{ConsoleInput, ConsoleOutput, console};
use crate::devices::serial::SerialPort;
use crate::event_loop::{EventHandler, EventLoop};
use crate::exit::ExitCode;
use crate::logger::{self, LogFileError};
use crate::machine::Environment;
use crate::seccomp::{self, FilterError, Filters};
use crate::sync::lock;
use crate::sys;
use crate::sys::terminal::{StandardInput, StandardOutput};

/// The process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Log file.
    #[error("cannot log")]
    Logger(#[from] LogFileError),
    /// Filters.
    #[error("cannot set up seccomp")]
    Seccomp(#[from] FilterError),
    /// The configuration file cannot be read.
    #[error("cannot read the configuration file {path}")]
    ReadConfig {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration file makes no sense.
    #[error("the configuration file {path} is wrong")]
    ParseConfig {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The configuration file asks for what cannot be done.
    #[error("cannot do what the configuration asks for")]
    ApplyConfig(#[from] ActionError),
    /// API socket.
    #[error("cannot listen on the API socket {path} (is it in use already?)")]
    Bind {
        /// Which socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anything of the host.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RunError {
    /// The code that the process ends with.
    pub const fn exit_code(&self) -> ExitCode {
        match self {
            Self::ParseConfig { .. } | Self::ApplyConfig(_) => ExitCode::BadConfiguration,
            _ => ExitCode::Failure,
        }
    }
}

const fn host(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

fn event() -> Result<EventFd, RunError> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(host("create an event"))
}

/// Runs a machine until it ends.
///
/// # Errors
/// If the process cannot do its work.
pub fn run(arguments: Arguments) -> Result<ExitCode, RunError> {
    logger::start(&arguments.id);
    logger::configure(&arguments.logger)?;
    log::info!("Running wrenn-vmm v{}", env!("CARGO_PKG_VERSION"));
    sys::signals::install().map_err(host("handle signals"))?;
    sys::kick::prepare().map_err(host("handle signals"))?;
    let filters = if arguments.seccomp {
        seccomp::filters()?
    } else {
        Filters::default()
    };

    let mut main = MainThread::new(arguments.id, filters)?;
    if let Some(metrics_path) = arguments.metrics_path {
        main.act(Action::SetMetrics(MetricsConfig { metrics_path }))?;
    }
    if let Some(path) = arguments.api_socket {
        main.start_api(path)?;
    }
    if let Some(path) = arguments.config_file {
        main.apply_file(path)?;
    }
    main.run()
}

struct MainThread {
    controller: Controller,
    events: EventLoop,
    console: ConsoleInput,
    console_output: Arc<ConsolePump>,
    input: Option<Arc<InputPump>>,
    input_wanted: EventFd,
    ends: EndEvents,
    filters: Filters,
    api: Option<(Receiver<Action>, Sender<Answer>)>,
}

impl MainThread {
    fn new(id: String, filters: Filters) -> Result<Self, RunError> {
        let mut events = EventLoop::new().map_err(host("wait for events"))?;
        let (console, output) = console(StandardOutput).map_err(host("create the console"))?;
        let wake = output.wake_event().as_raw_fd();
        let stdout = output.sink().descriptor();
        let console_output = Arc::new(ConsolePump(Mutex::new(output)));
        events
            .add(wake, EventSet::IN, console_output.clone(), 0)
            .map_err(host("watch the console"))?;
        // By edge: it is writable nearly always, and only becoming so again matters. A
        // regular file cannot be watched and never has to be.
        let writable = EventSet::OUT | EventSet::EDGE_TRIGGERED;
        if let Err(error) = events.add(stdout, writable, console_output.clone(), 0) {
            log::debug!("standard output is always writable: {error}");
        }
        let ends = EndEvents {
            finished: event()?,
            failed: event()?,
        };
        for end in [&ends.finished, &ends.failed] {
            events
                .add(end.as_raw_fd(), EventSet::IN, Arc::new(WakeOnly), 0)
                .map_err(host("watch the machine"))?;
        }
        Ok(Self {
            controller: Controller::new(id),
            events,
            console,
            console_output,
            input: None,
            input_wanted: event()?,
            ends,
            filters,
            api: None,
        })
    }

    fn start_api(&mut self, path: PathBuf) -> Result<(), RunError> {
        let (action_sender, actions) = channel();
        let (answers, answer_receiver) = channel();
        let wake = event()?;
        let woken = Arc::new(Drained(wake.try_clone().map_err(host("share an event"))?));
        self.events
            .add(wake.as_raw_fd(), EventSet::IN, woken, 0)
            .map_err(host("watch the API"))?;
        let channel = Channel {
            actions: action_sender,
            answers: answer_receiver,
            wake,
        };
        let server = ApiServer::bind(&path, channel).map_err(|source| RunError::Bind {
            path: path.clone(),
            source,
        })?;
        let filter = self.filters.api.clone();
        std::thread::Builder::new()
            .name("api".into())
            .stack_size(256 << 10)
            .spawn(move || match filter.apply() {
                Ok(()) => server.run(),
                Err(error) => log::error!("no API: {}", chain(&error)),
            })
            .map_err(host("start the API thread"))?;
        log::info!("Listening on API socket ({}).", path.display());
        self.api = Some((actions, answers));
        Ok(())
    }

    fn apply_file(&mut self, path: PathBuf) -> Result<(), RunError> {
        let text = std::fs::read(&path).map_err(|source| RunError::ReadConfig {
            path: path.clone(),
            source,
        })?;
        let config: VmConfig = serde_json::from_slice(&text)
            .map_err(|source| RunError::ParseConfig { path, source })?;
        let mut actions = Vec::new();
        actions.extend(config.logger.map(Action::SetLogger));
        actions.extend(config.metrics.map(Action::SetMetrics));
        actions.extend(
            config
                .machine_config
                .map(|machine| Action::SetMachine(machine.into())),
        );
        actions.push(Action::SetBootSource(config.boot_source));
        actions.extend(config.drives.into_iter().map(Action::SetDrive));
        actions.extend(
            config
                .network_interfaces
                .into_iter()
                .map(Action::SetNetwork),
        );
        actions.extend(config.entropy.map(Action::SetEntropy));
        actions.extend(config.balloon.map(Action::SetBalloon));
        actions.push(Action::Start);
        for action in actions {
            self.act(action)?;
        }
        self.started()
    }

    fn act(&mut self, action: Action) -> Answer {
        let input_wanted = self.input_wanted.try_clone().map_err(|source| {
            Box::new(crate::machine::StartError::Host {
                what: "share an event",
                source,
            })
        })?;
        self.controller.handle(
            action,
            &mut Environment {
                events: &mut self.events,
                console: self.console.clone(),
                ends: &self.ends,
                filters: &self.filters,
                input_wanted,
            },
        )
    }

    /// The first time that a machine is there: connects its input. The filter of this thread is
    /// in force by then.
    fn started(&mut self) -> Result<(), RunError> {
        let Some(machine) = self.controller.machine() else {
            return Ok(());
        };
        if self.input.is_some() {
            return Ok(());
        }
        let input = Arc::new(InputPump {
            input: StandardInput::take_over(),
            serial: machine.serial().clone(),
            wanted: self
                .input_wanted
                .try_clone()
                .map_err(host("share an event"))?,
        });
        let readable = EventSet::IN | EventSet::EDGE_TRIGGERED;
        // Files and /dev/null cannot be watched: then there is no input.
        if let Err(error) = self
            .events
            .add(input.input.descriptor(), readable, input.clone(), 0)
        {
            log::debug!("no console input: {error}");
        }
        self.events
            .add(
                self.input_wanted.as_raw_fd(),
                EventSet::IN,
                input.clone(),
                0,
            )
            .map_err(host("watch the console"))?;
        self.input = Some(input);
        Ok(())
    }

    fn run(mut self) -> Result<ExitCode, RunError> {
        let code = loop {
            self.events.run_once().map_err(host("wait for events"))?;
            self.serve_api()?;
            if self.ends.failed.read().is_ok() {
                break ExitCode::Failure;
            }
            if self.ends.finished.read().is_ok() {
                break ExitCode::Ok;
            }
        };
        self.console_output.drain();
        if let Some(input) = &self.input {
            input.input.give_back();
        }
        log::info!("wrenn-vmm exiting. exit_code={}", code as u8);
        Ok(code)
    }

    fn serve_api(&mut self) -> Result<(), RunError> {
        while let Some(action) = self
            .api
            .as_ref()
            .and_then(|(actions, _)| actions.try_recv().ok())
        {
            let answer = self.act(action);
            self.started()?;
            if let Some((_, answers)) = &self.api
                && answers.send(answer).is_err()
            {
                log::error!("the API thread is gone");
                self.api = None;
            }
        }
        Ok(())
    }
}

/// For descriptors that only have to end the wait.
struct WakeOnly;

impl EventHandler for WakeOnly {
    fn handle(&self, _source: u32, _events: EventSet) {}
}

/// An event whose count means nothing.
struct Drained(EventFd);

impl EventHandler for Drained {
    fn handle(&self, _source: u32, _events: EventSet) {
        self.0.read().ok();
    }
}

struct ConsolePump(Mutex<ConsoleOutput<StandardOutput>>);

impl ConsolePump {
    fn drain(&self) {
        // If the reader is slow, standard output becoming writable brings us back.
        lock(&self.0).drain(Instant::now());
    }
}

impl EventHandler for ConsolePump {
    fn handle(&self, _source: u32, _events: EventSet) {
        self.drain();
    }
}

struct InputPump {
    input: StandardInput,
    serial: Arc<SerialPort>,
    wanted: EventFd,
}

impl EventHandler for InputPump {
    fn handle(&self, _source: u32, _events: EventSet) {
        self.wanted.read().ok();
        let mut buffer = [0u8; 64];
        loop {
            let room = self.serial.input_capacity().min(buffer.len());
            if room == 0 {
                return;
            }
            match self.input.read(&mut buffer[..room]) {
                Ok(None | Some(0)) => return,
                Ok(Some(count)) => self.serial.input(&buffer[..count]),
                Err(error) => {
                    log::debug!("console input: {error}");
                    return;
                }
            }
        }
    }
}
