//! The live view: a table of edges, redrawn on a terminal, plain lines elsewhere.

pub mod edges;

use std::{collections::BTreeMap, io::Write as _, time::Duration};

use edges::{Edge, EdgeKey, Reading};

use crate::client::{Api, Failed};

/// Reads and draws until the caller drops it. `below` stands under the table.
pub async fn show(api: &Api, interval: Duration, below: &[String]) -> Result<(), Failed> {
    use std::io::IsTerminal as _;
    let terminal = std::io::stdout().is_terminal();
    let mut before = read(api).await.unwrap_or_default().edges();
    loop {
        tokio::time::sleep(interval).await;
        // a server that is restarting is no reason to end the view
        let Ok(reading) = read(api).await else { continue };
        let now = reading.edges();
        let mut text = String::new();
        if terminal {
            // home, and clear what is below the cursor
            text.push_str("\x1b[H\x1b[J");
        }
        for line in table(&now, &before, interval.as_secs_f64()).iter().chain(below) {
            text.push_str(line);
            text.push('\n');
        }
        if !reading.silent.is_empty() {
            text.push_str(&format!("{} of the proxies did not answer\n", reading.silent.len()));
        }
        let mut out = std::io::stdout().lock();
        // a closed pipe ends the process by its own means
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        drop(out);
        before = now;
    }
}

/// One table over `interval`.
pub async fn once(api: &Api, interval: Duration) -> Result<Vec<String>, Failed> {
    let before = read(api).await?.edges();
    tokio::time::sleep(interval).await;
    Ok(table(&read(api).await?.edges(), &before, interval.as_secs_f64()))
}

pub async fn read(api: &Api) -> Result<Reading, Failed> {
    let json = api.get("/weft/v1/edges").await?;
    serde_json::from_value(json)
        .map_err(|e| Failed::Problem(format!("the server's answer is not what it promises: {e}")))
}

/// The table's lines for what happened in `seconds` between two readings.
pub fn table(now: &BTreeMap<EdgeKey, Edge>, before: &BTreeMap<EdgeKey, Edge>, seconds: f64) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<10} {:<10} {:<6} {:>8} {:>9} {:>8} {:>8} {:>7} {:>7}  {:<15} {}",
        "FROM", "TO", "PROTO", "REQ/S", "SUCCESS", "P50 MS", "P99 MS", "DENIED", "TOTAL", "KEY EXCHANGE", "IDENTITIES"
    )];
    for (key, edge) in now {
        lines.push(row(key, edge, &edge.since(before.get(key)), seconds));
    }
    lines
}

#[expect(clippy::cast_precision_loss, reason = "for people to read, to three digits")]
fn row(key: &EdgeKey, edge: &Edge, recent: &Edge, seconds: f64) -> String {
    let success = match recent.requests {
        0 => "-".into(),
        n => format!("{:.1}%", 100.0 * (1.0 - recent.failed as f64 / n as f64)),
    };
    let ms = |q| recent.quantile(q).map_or("-".into(), |ms| format!("{ms:.1}"));
    format!(
        "{:<10} {:<10} {:<6} {:>8.1} {:>9} {:>8} {:>8} {:>7} {:>7}  {:<15} {} → {}",
        key.source,
        key.destination,
        key.protocol,
        recent.requests as f64 / seconds.max(0.001),
        success,
        ms(0.5),
        ms(0.99),
        edge.denied,
        edge.requests,
        if edge.key_exchange.is_empty() { "-" } else { &edge.key_exchange },
        path(&edge.source_id),
        path(&edge.destination_id),
    )
}

/// A SPIFFE ID without its scheme and trust domain: the view names the trust domain once.
fn path(id: &str) -> &str {
    let rest = id.strip_prefix("spiffe://").unwrap_or(id);
    rest.find('/').and_then(|at| rest.get(at..)).unwrap_or(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_rates_between_two_readings() {
        let key = EdgeKey { source: "web".into(), destination: "stock".into(), protocol: "tcp".into() };
        let edge = |requests| Edge {
            requests,
            source_id: "spiffe://t/ns/default/sa/web".into(),
            destination_id: "spiffe://t/ns/default/sa/stock".into(),
            ..Edge::default()
        };
        let (now, before) = ([(key.clone(), edge(30))].into(), [(key, edge(10))].into());
        let lines = table(&now, &before, 2.0);
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(words[..5], ["web", "stock", "tcp", "10.0", "100.0%"]);
        assert!(lines[1].ends_with("/ns/default/sa/web → /ns/default/sa/stock"), "{}", lines[1]);
    }
}
