//! `weft why`: what happened to a request, hop by hop.

use anyhow::Result;
use serde_json::Value;

use super::print::{self, list, text};
use crate::{
    cli,
    client::{Api, Failed, quoted},
    say::{say, tell},
};

pub async fn why(flags: cli::Why) -> Result<u8> {
    let api = Api::find(&flags.query.client)?;
    let path = match &flags.request {
        Some(id) => format!("/weft/v1/why?request_id={}", quoted(id)),
        None => format!("/weft/v1/recent?limit={}{}", flags.last, if flags.all { "" } else { "&failed=true" }),
    };
    let json = api.get(&path).await?;
    if print::structured(&json, flags.query.output) {
        return Ok(0);
    }
    let decisions = list(&json, "decisions");
    for silent in list(&json, "silent") {
        tell!("{} did not answer: its part is missing", silent.as_str().unwrap_or_default());
    }
    if decisions.is_empty() {
        let what = match &flags.request {
            Some(id) => format!("no proxy remembers a request {id}; each keeps its latest decisions only"),
            None => "no refusal is remembered; ask for --all, or name a request id".into(),
        };
        return Err(Failed::Problem(what).into());
    }
    for decision in decisions {
        say!("{}", told(decision));
    }
    Ok(0)
}

/// One hop in words.
fn told(d: &Value) -> String {
    let mut lines = vec![format!(
        "{} {} {} → {}{}: {}",
        text(d, "request_id"),
        text(d, "direction"),
        either(d, "source_identity", "source"),
        text(d, "service"),
        asked(d),
        outcome(d)
    )];
    let mut say = |label: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("    {label:<9} {value}"));
        }
    };
    say("proxy", text(d, "proxy"));
    say("route", text(d, "route"));
    say("verdict", text(d, "verdict"));
    say("rule", text(d, "rule"));
    say("reason", text(d, "reason"));
    for attempt in list(d, "attempts") {
        let failure = text(attempt, "failure");
        let how = if failure.is_empty() { format!("status {}", text(attempt, "status")) } else { failure };
        let reason = text(attempt, "reason");
        say(
            "endpoint",
            format!(
                "{} {how}{}",
                either(attempt, "endpoint", "addr"),
                if reason.is_empty() { reason } else { format!(" ({reason})") }
            ),
        );
    }
    let revision = text(d, "revision");
    say(
        "failure",
        [text(d, "flag"), text(d, "failure"), text(d, "side")]
            .into_iter()
            .filter(|s| !s.is_empty())
            .collect::<Vec<_>>()
            .join(" "),
    );
    say("config", if revision.is_empty() { revision } else { format!("revision {revision}") });
    // the proxy's own sentences, the first of which repeats the head line
    let told = text(d, "explanation");
    lines.extend(told.lines().skip(1).map(|line| format!("    {line}")));
    lines.join("\n")
}

fn asked(d: &Value) -> String {
    match text(d, "method") {
        m if m.is_empty() => format!(" ({})", text(d, "protocol")),
        m => format!(" {m} {}", text(d, "path")),
    }
}

fn outcome(d: &Value) -> String {
    match text(d, "status").as_str() {
        "" | "0" => match text(d, "failure") {
            f if f.is_empty() => "ended well".into(),
            f => f,
        },
        status => status.into(),
    }
}

fn either(json: &Value, first: &str, second: &str) -> String {
    Some(text(json, first)).filter(|s| !s.is_empty()).unwrap_or_else(|| text(json, second))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nov_01_a_denial_names_proxy_rule_and_reason() {
        let told = told(&json!({
            "request_id": "r1", "direction": "inbound", "source_identity": "spiffe://t/ns/default/sa/web",
            "service": "default/reviews", "method": "GET", "path": "/x", "status": 403, "proxy": "default/reviews/n/1",
            "verdict": "deny", "rule": "AuthorizationPolicy/default/no-reviews#rule-0", "reason": "from: principals matched",
            "attempts": [], "revision": "1.7",
        }));
        let want = [
            "r1 inbound spiffe://t/ns/default/sa/web → default/reviews GET /x: 403",
            "    proxy     default/reviews/n/1",
            "    verdict   deny",
            "    rule      AuthorizationPolicy/default/no-reviews#rule-0",
            "    reason    from: principals matched",
            "    config    revision 1.7",
        ];
        assert_eq!(told, want.join("\n"));
    }
}
