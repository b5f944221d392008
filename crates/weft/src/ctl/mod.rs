//! The verbs: each asks the server something and prints the answer.

mod apply;
mod mesh;
mod print;
mod tokens;
mod why;

use anyhow::Result;

use crate::{
    cli::{Ca, Command, Token},
    client::Api,
    say::say,
};

/// How many endpoints of an answer of `/weft/v1/endpoints` take traffic.
pub fn healthy(answer: &serde_json::Value) -> usize {
    print::list(answer, "endpoints").iter().filter(|e| print::text(e, "health") == "passing").count()
}

/// Runs one verb; the result is the exit code.
pub async fn run(verb: Command) -> Result<u8> {
    match verb {
        Command::Apply(flags) => apply::apply(flags).await,
        Command::Delete(flags) => apply::delete(flags).await,
        Command::Get(flags) => apply::get(flags).await,
        Command::Watch(flags) => apply::watch(flags).await,
        Command::Lint(flags) => apply::lint(&flags),
        Command::Status(query) => mesh::status(query).await,
        Command::Services(flags) => mesh::services(flags.query).await,
        Command::Endpoints(flags) => mesh::endpoints(flags).await,
        Command::Allow(flags) => mesh::allow(flags).await,
        Command::Token(Token::Create(flags)) => tokens::create(flags).await,
        Command::Token(Token::List(query)) => tokens::list(query).await,
        Command::Token(Token::Revoke(flags)) => tokens::revoke(flags).await,
        Command::Ca(Ca::Status(query)) => mesh::ca(query).await,
        Command::Why(flags) => why::why(flags).await,
        Command::Top(flags) => {
            let api = Api::find(&flags.client)?;
            let interval = std::time::Duration::from_secs(flags.interval.max(1));
            if flags.once {
                crate::top::once(&api, interval).await?.iter().for_each(|line| say!("{line}"));
            } else {
                crate::top::show(&api, interval, Vec::new).await?;
            }
            Ok(0)
        }
        // the roles were taken before
        _ => Ok(1),
    }
}
