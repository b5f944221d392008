//! HTTP/1 applications on both sides, HTTP/2 between (features.md TRF-34).

use weft_model::Protocol;

use crate::{
    origin::{Origin, Raw},
    support::Pair,
};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-Kept: yes\r\n\r\nhello";

#[tokio::test]
async fn trf_34_a_request_goes_through_the_pair_and_the_connection_stays() {
    let origin = Origin::answering(OK).await;
    let pair = Pair::new(Protocol::Http, origin.addr);
    let mut c = Raw::connect(pair.at).await;
    for _ in 0..3 {
        c.send(format!("GET /a?b=c HTTP/1.1\r\nHost: {}\r\nX-Sent: 1\r\n\r\n", pair.at)).await;
        let (head, body) = c.response().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("x-kept: yes\r\n"), "{head}");
        assert_eq!(body, "hello");
    }
    let seen = origin.logged();
    assert_eq!(seen.matches("GET /a?b=c HTTP/1.1\r\n").count(), 3, "{seen}");
    assert_eq!(seen.matches("host: api.shop\r\n").count(), 3, "a host that names the listener is rewritten: {seen}");
    assert_eq!(seen.matches("x-sent: 1\r\n").count(), 3, "{seen}");
    assert_eq!(seen.matches("x-request-id: ").count(), 3, "{seen}");
    assert!(!seen.contains("weft-"), "{seen}");
}
