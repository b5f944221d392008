use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use weft_rt::net::Stream;

use super::*;

/// Both ends of a connection over loopback.
async fn pair() -> (TcpStream, Io) {
    let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (ours, accepted) = tokio::join!(TcpStream::connect(l.local_addr().unwrap()), l.accept());
    (ours.unwrap(), Io::from(Stream::Tcp(accepted.unwrap().0)))
}

async fn run<T>(f: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), f).await.expect("timed out")
}

#[tokio::test]
async fn a_half_close_goes_through_and_the_other_way_stays_open() {
    let ((mut client, mut a), (mut server, mut b)) = (pair().await, pair().await);
    let talk = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"question");
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        got.clear();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
    };
    let mut spoke = None;
    let mut note = |e| {
        if let Event::Spoke(s) = e {
            spoke = Some(s);
        }
    };
    let (p, ()) = run(async { tokio::join!(pump(&mut a, &mut b, None, &mut note), talk) }).await;
    assert!(matches!(p.end, End::Closed), "{:?}", p.end);
    assert_eq!((p.forth, p.back, spoke), (8, 6, Some(Spoke::First)));
}

#[tokio::test]
async fn a_reset_goes_through_as_a_reset() {
    let ((mut client, mut a), (mut server, mut b)) = (pair().await, pair().await);
    let talk = async {
        server.write_all(b"part").await.unwrap();
        let mut got = [0; 4];
        client.read_exact(&mut got).await.unwrap();
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
    };
    let mut quiet = |_| {};
    let (p, ()) = run(async { tokio::join!(pump(&mut a, &mut b, None, &mut quiet), talk) }).await;
    assert!(matches!(p.end, End::SecondBroke(_)), "{:?}", p.end);
    drop((a, b));
    let mut rest = Vec::new();
    assert_eq!(run(client.read_to_end(&mut rest)).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reader_that_stalls_holds_up_its_writer_only() {
    let ((mut client, mut a), (mut server, mut b)) = (pair().await, pair().await);
    let big = vec![7u8; 8 << 20];
    let talk = async {
        let write = async {
            client.write_all(&big).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let read = async {
            // back goes through while forth is full
            server.write_all(b"hi").await.unwrap();
            server.shutdown().await.unwrap();
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), 8 << 20);
        };
        tokio::join!(write, read);
    };
    let mut quiet = |_| {};
    let (p, ()) = run(async { tokio::join!(pump(&mut a, &mut b, None, &mut quiet), talk) }).await;
    assert!(matches!(p.end, End::Closed));
    assert_eq!((p.forth, p.back), (8 << 20, 2));
}

#[tokio::test]
async fn idleness_ends_it() {
    let ((client, mut a), (_server, mut b)) = (pair().await, pair().await);
    let p = run(pump(&mut a, &mut b, Some(Duration::from_millis(20)), &mut |_| {})).await;
    assert!(matches!(p.end, End::Idle));
    drop(client);
}
