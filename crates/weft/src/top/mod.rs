//! The live view: a table of edges, redrawn on a terminal, plain lines elsewhere.

pub mod edges;

use std::{collections::BTreeMap, time::Duration};

use edges::{Edge, EdgeKey, Reading};

use crate::{
    client::{Api, Failed},
    say,
};

/// Reads and draws until the caller drops it, or nobody reads what is drawn. On a terminal the table stays where it is, in place of the one before;
/// `news`, asked before each drawing, stands above it and stays.
pub async fn show(api: &Api, interval: Duration, mut news: impl FnMut() -> Vec<String>) -> Result<(), Failed> {
    use std::io::IsTerminal as _;
    let terminal = std::io::stdout().is_terminal();
    let mut before = read(api).await.unwrap_or_default().edges();
    let mut drawn = 0;
    loop {
        tokio::time::sleep(interval).await;
        let news = news();
        // a server that is restarting is no reason to end the view
        let reading = read(api).await;
        let table = match &reading {
            Ok(reading) => {
                let now = reading.edges();
                let mut lines = table(&now, &before, interval.as_secs_f64());
                if !reading.silent.is_empty() {
                    lines.push(format!("{} of the proxies did not answer", reading.silent.len()));
                }
                before = now;
                lines
            }
            Err(_) if news.is_empty() => continue,
            Err(e) => vec![e.to_string()],
        };
        let text = if terminal { redrawn(&news, &table, drawn) } else { plain(&news, &table) };
        drawn = table.len();
        say::out(format_args!("{text}"));
        if !say::heard() {
            return Ok(());
        }
    }
}

/// Goes up to where the last table of `drawn` lines begins, and draws over it. Lines are cut at the terminal's edge
/// meanwhile, so that each takes one row and the next drawing finds its place.
fn redrawn(news: &[String], table: &[String], drawn: usize) -> String {
    let up = if drawn == 0 { String::new() } else { format!("\x1b[{drawn}A") };
    let news: String = news.iter().map(|line| format!("{line}\n")).collect();
    let table: String = table.iter().map(|line| format!("{line}\n")).collect();
    format!("{up}\x1b[J{news}\x1b[?7l{table}\x1b[?7h")
}

fn plain(news: &[String], table: &[String]) -> String {
    news.iter().chain(table).map(|line| format!("{line}\n")).collect()
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
        "{:<10} {:<10} {:<4} {:<6} {:>8} {:>9} {:>8} {:>8} {:>7} {:>7}  {:<15} {}",
        "FROM",
        "TO",
        "VER",
        "PROTO",
        "REQ/S",
        "SUCCESS",
        "P50 MS",
        "P99 MS",
        "DENIED",
        "TOTAL",
        "KEY EXCHANGE",
        "IDENTITIES"
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
        "{:<10} {:<10} {:<4} {:<6} {:>8.1} {:>9} {:>8} {:>8} {:>7} {:>7}  {:<15} {} → {}",
        key.source,
        key.destination,
        if key.version.is_empty() { "-" } else { &key.version },
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
        let key =
            EdgeKey { source: "web".into(), destination: "stock".into(), version: "v2".into(), protocol: "tcp".into() };
        let edge = |requests| Edge {
            requests,
            source_id: "spiffe://t/ns/default/sa/web".into(),
            destination_id: "spiffe://t/ns/default/sa/stock".into(),
            ..Edge::default()
        };
        let (now, before) = ([(key.clone(), edge(30))].into(), [(key, edge(10))].into());
        let lines = table(&now, &before, 2.0);
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(words[..6], ["web", "stock", "v2", "tcp", "10.0", "100.0%"]);
        assert!(lines[1].ends_with("/ns/default/sa/web → /ns/default/sa/stock"), "{}", lines[1]);
    }

    #[test]
    fn a_terminal_s_table_takes_the_place_of_the_one_before() {
        let lines = |l: &[&str]| l.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(redrawn(&[], &lines(&["A", "b"]), 0), "\x1b[J\x1b[?7lA\nb\n\x1b[?7h");
        assert_eq!(redrawn(&lines(&["new"]), &lines(&["A"]), 2), "\x1b[2A\x1b[Jnew\n\x1b[?7lA\n\x1b[?7h");
        assert_eq!(plain(&lines(&["new"]), &lines(&["A"])), "new\nA\n");
    }
}
