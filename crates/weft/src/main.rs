//! Weft: a service mesh in one binary. Every role is a subcommand; this file only chooses one.

mod cli;
mod client;
mod ctl;
mod demo;
mod place;
mod role;
mod say;
mod top;

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // asking for help is no mistake
            let code = u8::from(e.use_stderr());
            let _ = e.print();
            return ExitCode::from(code);
        }
    };
    let code = match run(cli.command) {
        Ok(code) => code,
        Err(e) => {
            say::tell!("weft: {e:#}");
            e.downcast_ref::<client::Failed>().map_or(1, client::Failed::code)
        }
    };
    match say::failure() {
        Some(e) if code == 0 => {
            say::tell!("weft: cannot write to standard output: {e}");
            ExitCode::from(2)
        }
        _ => ExitCode::from(code),
    }
}

/// One runtime per role: the long-lived ones on a thread of their own choosing, the short ones on this one.
fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        Command::Janitor => {
            weft_agent::janitor::tend(std::io::stdin().lock(), std::io::stdout());
            Ok(0)
        }
        Command::Dev(flags) => block_on(role::dev::run(flags)),
        Command::Server(flags) => block_on(role::server::run(flags)),
        Command::Run(flags) => block_on(role::run::run(*flags)),
        Command::Sidecar(flags) => block_on(role::run::sidecar(*flags)),
        Command::DemoService(flags) => block_on(demo::service(flags)),
        Command::DemoLoad(flags) => block_on(demo::customers(flags)),
        verb => block_on(ctl::run(verb)),
    }
}

fn block_on(role: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(role))
}
