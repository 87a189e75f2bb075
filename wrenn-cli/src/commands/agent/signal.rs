//! `wrenn agent kill`.

use wrenn_proto::hostagent::SignalProcessRequest;

use super::client::AgentClient;

/// Options of `wrenn agent kill`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Signal to send.
    #[arg(long, short, value_name = "NAME", default_value = "TERM")]
    signal: Signal,
    /// The sandbox.
    id: String,
    /// The command's process id in the guest.
    pid: u32,
}

/// What an agent passes on, with Linux's numbers.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
enum Signal {
    Hup = 1,
    Int = 2,
    Quit = 3,
    Kill = 9,
    Usr1 = 10,
    Usr2 = 12,
    Term = 15,
    Cont = 18,
    Stop = 19,
}

pub(super) async fn run(agent: &AgentClient, args: &Args) -> anyhow::Result<()> {
    let request = SignalProcessRequest {
        id: args.id.clone(),
        pid: args.pid,
        signal: args.signal as u32,
        ..SignalProcessRequest::default()
    };
    let answer = agent.rpc.signal_process(request).await;
    agent.check(answer).map(drop)
}
