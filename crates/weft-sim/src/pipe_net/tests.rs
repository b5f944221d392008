use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

async fn connected(net: &PipeNet) -> (Stream, Stream) {
    let mut listener = net.host(ip(2)).listen(80).unwrap();
    let at = listener.addr().into();
    let ours = net.host(ip(1)).connect(at).await.unwrap();
    (ours, listener.accept().await.unwrap().0)
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_still_answers() {
    let net = PipeNet::new(1);
    net.set_weather(Weather { delay: Duration::from_millis(50), ..Weather::default() });
    let (mut a, mut b) = connected(&net).await;
    a.write_all(b"question").await.unwrap();
    a.shutdown().await.unwrap();
    let mut read = String::new();
    b.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "question");
    b.write_all(b"answer").await.unwrap();
    drop(b);
    let mut read = String::new();
    a.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "answer");
    assert!(a.write_all(b"too late").await.is_err());
    drop(a);
    assert_eq!(net.open_ends(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reset_is_not_an_end() {
    let net = PipeNet::new(1);
    let (mut a, mut b) = connected(&net).await;
    a.write_all(b"part").await.unwrap();
    a.reset_on_drop();
    drop(a);
    assert_eq!(b.read(&mut [0; 4]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let (mut a, _b) = connected(&net).await;
    net.crash(ip(2));
    assert_eq!(a.read(&mut [0; 4]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let refused = net.host(ip(1)).connect(Addr::Tcp(SocketAddr::new(ip(2), 80))).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_over_a_partition_arrives_when_it_ends() {
    let net = PipeNet::new(1);
    let (mut a, mut b) = connected(&net).await;
    net.part(ip(2), ip(1));
    a.write_all(b"x").await.unwrap();
    let mut byte = [0];
    let minute = Duration::from_secs(60);
    assert!(tokio::time::timeout(minute, b.read(&mut byte)).await.is_err());
    let mut listener = net.host(ip(2)).listen(81).unwrap();
    let host = net.host(ip(1));
    let mut connecting = host.connect(listener.addr().into());
    assert!(tokio::time::timeout(minute, &mut connecting).await.is_err());
    net.rejoin(ip(1), ip(2));
    b.read_exact(&mut byte).await.unwrap();
    connecting.await.unwrap();
    assert_eq!(listener.accept().await.unwrap().1.ip(), ip(1));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_rests_holds_up_the_writer() {
    let net = PipeNet::new(1);
    let (mut a, mut b) = connected(&net).await;
    let all = vec![7; CAPACITY * 2];
    let (written, read) = tokio::join!(
        async {
            a.write_all(&all).await.unwrap();
            let at = Instant::now();
            a.shutdown().await.unwrap();
            at
        },
        async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let began = Instant::now();
            let mut read = Vec::new();
            b.read_to_end(&mut read).await.unwrap();
            assert_eq!(read.len(), CAPACITY * 2);
            began
        }
    );
    assert!(written >= read);
}

#[tokio::test(start_paused = true)]
async fn an_end_is_seen_after_the_other_direction_was_cut_short() {
    let net = PipeNet::new(1);
    net.set_weather(Weather { truncated: 1000, delay: Duration::from_millis(50), ..Weather::default() });
    for _ in 0..20 {
        let (mut a, mut b) = connected(&net).await;
        tokio::time::sleep(BREAKS_WITHIN * 2).await;
        let (minute, mut byte) = (Duration::from_secs(60), [0]);
        let waiting =
            async { tokio::time::timeout(minute, a.read(&mut byte)).await.expect("told of the end").unwrap() };
        let closing = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            b.shutdown().await.unwrap();
        };
        assert_eq!(tokio::join!(waiting, closing).0, 0);
    }
}

/// What becomes of 40 connections in bad weather, with times.
async fn fates(seed: u64) -> Vec<(String, Duration)> {
    let net = PipeNet::new(seed);
    net.set_weather(Weather { refused: 100, cut: 200, truncated: 200, crumbs: 200, delay: Duration::from_millis(200) });
    let mut listener = net.host(ip(2)).listen(80).unwrap();
    let begun = Instant::now();
    let mut fates = Vec::new();
    for _ in 0..40 {
        let fate = match net.host(ip(1)).connect(listener.addr().into()).await {
            Err(e) => e.kind().to_string(),
            Ok(mut a) => {
                let (mut b, _) = listener.accept().await.unwrap();
                b.write_all(b"hello").await.unwrap();
                let mut read = [0; 5];
                let first = a.read(&mut read).await.unwrap();
                let rest = tokio::time::timeout(Duration::from_secs(60), async {
                    let mut rest = Vec::new();
                    a.read_to_end(&mut rest).await.map(|_| rest.len())
                });
                let back = tokio::time::timeout(Duration::from_secs(60), b.read(&mut read));
                format!("{first} {:?} {:?}", rest.await.map_err(|_| ()), back.await.map_err(|_| ()))
            }
        };
        fates.push((fate, begun.elapsed()));
    }
    fates
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_has_the_same_weather() {
    let once = fates(3).await;
    assert_eq!(once, fates(3).await);
    assert_ne!(once, fates(4).await);
    let some = |holds: fn(&str) -> bool| once.iter().any(|(fate, _)| holds(fate));
    assert!(some(|f| f == "connection refused"), "{once:#?}");
    assert!(some(|f| f.starts_with("1 ")), "none was read byte by byte: {once:#?}");
    assert!(some(|f| f.contains("ConnectionReset")), "{once:#?}");
    assert!(some(|f| f.contains("Ok(Ok(0)) Err(())")), "none was cut short in one direction: {once:#?}");
    assert!(some(|f| f == "5 Err(()) Err(())"), "none was left alone: {once:#?}");
}
