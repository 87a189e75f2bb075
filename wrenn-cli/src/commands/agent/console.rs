//! `wrenn agent console`: what a guest printed before anybody could ask it.

use std::io::Write as _;

use wrenn_proto::hostagent::{FollowConsoleRequest, GetConsoleRequest};

use super::client::AgentClient;

/// Options of `wrenn agent console`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    id: String,
    /// How much of it.
    #[arg(long, value_name = "N", default_value_t = 64 << 10)]
    bytes: u32,
    /// The beginning of the log, and not its end.
    #[arg(long)]
    from_start: bool,
    /// Go on with what is added, until the sandbox ends.
    #[arg(long, short)]
    follow: bool,
}

pub(super) async fn run(agent: &AgentClient, args: Args) -> anyhow::Result<()> {
    if !args.follow {
        let request = GetConsoleRequest {
            id: args.id,
            max_bytes: args.bytes,
            from_start: args.from_start,
        };
        let answer = agent.rpc.get_console(request).await;
        let data = agent.check(answer)?.into_owned().data;
        if data.is_empty() {
            drop_eprintln!("wrenn: the console is empty: a healthy guest boots quietly");
        }
        return print(&data);
    }
    let request = FollowConsoleRequest {
        id: args.id,
        max_bytes: args.bytes,
        from_start: args.from_start,
    };
    let followed = agent.rpc.follow_console(request).await;
    let mut stream = agent.check(followed)?;
    while let Some(message) = agent.check(stream.message().await)? {
        print(&message.to_owned_message().data)?;
    }
    Ok(())
}

fn print(data: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    stdout.write_all(data)?;
    Ok(stdout.flush()?)
}
