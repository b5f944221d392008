//! Whether an application can be reached around its sidecar: does its port listen beyond loopback?

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where something listens on a port of this machine's network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// Nothing listens (yet), or this system does not tell.
    Unknown,
    Loopback,
    Beyond(IpAddr),
}

/// Looks at the kernel's tables of listening sockets (Linux).
pub fn of_port(port: u16) -> Exposure {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    in_tables(port, &[read("/proc/net/tcp"), read("/proc/net/tcp6")])
}

fn in_tables(port: u16, tables: &[String]) -> Exposure {
    let listening = tables.iter().flat_map(|t| t.lines().skip(1)).filter_map(listening).filter(|(_, p)| *p == port);
    let mut found = Exposure::Unknown;
    for (ip, _) in listening {
        if !ip.to_canonical().is_loopback() {
            return Exposure::Beyond(ip);
        }
        found = Exposure::Loopback;
    }
    found
}

/// The local address of a line whose state is LISTEN (0A).
fn listening(line: &str) -> Option<(IpAddr, u16)> {
    let mut words = line.split_whitespace();
    let local = words.nth(1)?;
    if words.nth(1)? != "0A" {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    Some((address(ip)?, u16::from_str_radix(port, 16).ok()?))
}

/// Groups of 32 bits, each as the machine stores it.
fn address(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for group in hex.as_bytes().chunks(8) {
        let group = u32::from_str_radix(std::str::from_utf8(group).ok()?, 16).ok()?;
        bytes.extend_from_slice(&group.to_ne_bytes());
    }
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn reads_the_kernels_tables() {
        let v4 = "head\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n   1: 00000000:1F91 00000000:0000 0A 0\n   2: 00000000:1F92 00000000:0000 01 0\n";
        let v6 = "head\n   0: 00000000000000000000000001000000:1F93 00000000000000000000000000000000:0000 0A 0\n   1: 0000000000000000FFFF00000100007F:1F94 00000000000000000000000000000000:0000 0A 0\n";
        let of = |port| in_tables(port, &[v4.into(), v6.into()]);
        assert_eq!(of(8080), Exposure::Loopback);
        assert_eq!(of(8081), Exposure::Beyond(Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(of(8082), Exposure::Unknown, "an established connection listens nowhere");
        assert_eq!(of(8083), Exposure::Loopback);
        assert_eq!(of(8084), Exposure::Loopback, "mapped loopback");
    }

    #[test]
    fn sees_real_listeners() {
        let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(of_port(loopback.local_addr().unwrap().port()), Exposure::Loopback);
        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        assert_eq!(of_port(any.local_addr().unwrap().port()), Exposure::Beyond(Ipv4Addr::UNSPECIFIED.into()));
    }
}
