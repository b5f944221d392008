//! The data plane alone: a sidecar for an application that something else runs and probes.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use weft_proxy::workload::{Flags, Plan, Workload};
use weft_rt::{
    log,
    process::{self, Stop},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A sidecar of the Weft service mesh.
#[derive(Parser)]
#[command(name = "weft-proxy", version, about, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    workload: Flags,
}

fn main() -> ExitCode {
    // before the heap grows
    process::small_pages();
    let flags = Cli::parse().workload;
    log::init(log::Format::Text, &log::filter("warn"), std::io::stderr);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&e),
    };
    match runtime.block_on(run(&flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failed(&*e),
    }
}

async fn run(flags: &Flags) -> Result<(), Box<dyn std::error::Error>> {
    let plan = Plan::new(flags, None)?;
    let mut stop = Stop::listen()?;
    let waiting = |why: &weft_proxy::control::JoinError| eprintln!("weft-proxy: waiting to join: {why}");
    let workload = tokio::select! {
        biased; // being told to stop wins over waiting for a server
        _ = stop.next() => return Ok(()),
        started = Workload::start(flags, &plan, Vec::new(), waiting) => started?,
    };
    tokio::select! {
        biased; // the same
        _ = stop.next() => {}
        registered = workload.registered() => {
            registered?;
            stop.next().await;
        }
    }
    let patience = tokio::select! {
        biased; // a second signal ends the patience
        _ = stop.next() => Duration::ZERO,
        () = workload.leave(flags.drain) => flags.drain,
    };
    workload.stop(patience).await;
    Ok(())
}

fn failed(e: &dyn std::error::Error) -> ExitCode {
    eprintln!("weft-proxy: {}", log::chain(e));
    ExitCode::FAILURE
}
