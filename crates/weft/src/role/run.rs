//! `weft run` and `weft sidecar`: a workload of the mesh, with its application below it or beside it.

mod probe;

use std::{ffi::OsString, time::Duration};

use anyhow::{Result, bail};
use weft_agent::{
    child::{Application, StartError, exit_code},
    exposure::{self, Exposure},
};
use weft_proxy::{
    control::JoinError,
    workload::{Flags, Plan, Readiness, Workload},
};
use weft_rt::{
    Tasks, log,
    process::{Signal, Stop},
};

use crate::{cli, place, say::tell};

/// How often to look where the application listens.
const EXPOSURE: Duration = Duration::from_secs(2);
/// As shells report a program that is not there, and one that cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

pub async fn run(flags: cli::Run) -> Result<u8> {
    if flags.program.is_empty() {
        bail!("there is nothing to run: put the program and its arguments after `--`, or use `weft sidecar`");
    }
    workload(&flags.workload, &flags.checks, &flags.program).await
}

pub async fn sidecar(flags: cli::Sidecar) -> Result<u8> {
    workload(&flags.workload, &flags.checks, &[]).await
}

async fn workload(flags: &Flags, checks: &[String], program: &[OsString]) -> Result<u8> {
    log::init(log::Format::Text, &log::filter("warn"), std::io::stderr);
    let plan = Plan::new(flags, place::dev().map(|dev| (dev.mesh, dev.socket)))?;
    let checks = probe::checks(checks, &plan.ports)?;
    let mut stop = Stop::listen()?;
    let workload = tokio::select! {
        biased; // being told to stop wins over waiting for a server
        _ = stop.next() => return Ok(0),
        started = start(flags, &plan, checks.iter().map(probe::definition).collect()) => started?,
    };
    tokio::select! {
        biased; // the same
        _ = stop.next() => {
            workload.stop(flags.drain).await;
            return Ok(0);
        }
        registered = workload.registered() => if registered? == Readiness::Unconfigured {
            tell!("weft: no configuration from the control plane yet; starting all the same");
        }
    }
    let mut tasks = Tasks::new();
    for check in checks {
        tasks.spawn("check", probe::probe(check, workload.results()));
    }
    let mut patience = flags.drain;
    let code = match program {
        [] => {
            tokio::select! {
                biased; // being told to stop wins
                _ = stop.next() => {}
                () = watch_exposure(&plan, &workload) => {}
            }
            tokio::select! {
                biased; // a second signal ends the patience
                _ = stop.next() => patience = Duration::ZERO,
                () = workload.leave(flags.drain) => {}
            }
            0
        }
        program => supervise(program, &plan, &workload, &mut stop, flags.drain).await?,
    };
    drop(tasks);
    tokio::select! {
        biased; // a second signal ends the patience
        _ = stop.next() => {}
        () = workload.stop(patience) => {}
    }
    Ok(code)
}

/// Runs the application to its end; a signal drains what comes in before the application hears of it.
async fn supervise(
    program: &[OsString],
    plan: &Plan,
    workload: &Workload,
    stop: &mut Stop,
    drain: Duration,
) -> Result<u8> {
    let environment =
        [("WEFT_SERVICE".to_owned(), plan.service.to_string()), ("WEFT_INSTANCE".to_owned(), plan.id.to_string())];
    let mut app = match Application::start(program, &environment) {
        Ok(app) => app,
        Err(e) => {
            let code = match &e {
                StartError::NotFound { .. } => NOT_FOUND,
                StartError::NotExecutable { .. } => NOT_EXECUTABLE,
                StartError::Other { .. } | StartError::Nothing => return Err(e.into()),
            };
            tell!("weft: {e}");
            return Ok(code);
        }
    };
    let signal = tokio::select! {
        biased; // its end is the end
        status = app.wait() => return Ok(exit_code(status?)),
        signal = stop.next() => signal,
        () = watch_exposure(plan, workload) => return Ok(0),
    };
    tokio::select! {
        biased; // an application that ends by itself needs no more patience; a second signal ends it
        status = app.wait() => return Ok(exit_code(status?)),
        _ = stop.next() => workload.hasten(),
        () = workload.leave(drain) => {}
    }
    app.signal(signal);
    let status = tokio::select! {
        biased; // a second signal, or too much patience, ends the application
        status = app.wait() => status?,
        _ = stop.next() => killed(&mut app).await?,
        () = tokio::time::sleep(drain) => killed(&mut app).await?,
    };
    Ok(exit_code(status))
}

/// Tells once when the application can be reached around its sidecar; never returns.
async fn watch_exposure(plan: &Plan, workload: &Workload) {
    let mut look = tokio::time::interval(EXPOSURE);
    loop {
        look.tick().await;
        let exposed = plan.ports.iter().find_map(|p| match exposure::of_port(p.port) {
            Exposure::Beyond(ip) => Some((p.port, ip)),
            Exposure::Loopback | Exposure::Unknown => None,
        });
        if let Some((port, ip)) = exposed {
            tell!(
                "weft: the application listens on {ip}:{port}: whoever reaches that address goes around the mesh's policy; \
                 bind it to 127.0.0.1 if it can be"
            );
            workload.bypassable().await;
            return std::future::pending().await;
        }
    }
}

async fn killed(app: &mut Application) -> Result<std::process::ExitStatus> {
    tracing::warn!("the application did not end in time: killed");
    app.signal(Signal::Kill);
    Ok(app.wait().await?)
}

/// Joins and binds; a control plane that is away is told of once.
async fn start(flags: &Flags, plan: &Plan, checks: Vec<weft_wire::v1::CheckDefinition>) -> Result<Workload> {
    let mut told = false;
    let waiting = |why: &JoinError| {
        if !std::mem::replace(&mut told, true) {
            tell!("weft: waiting to join: {why}");
        }
    };
    let workload = Workload::start(flags, plan, checks, waiting).await?;
    if told {
        tell!("weft: joined");
    }
    Ok(workload)
}
