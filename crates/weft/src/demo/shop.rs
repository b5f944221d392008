//! The bookshop's services: small, but real programs that know nothing of the mesh. Each listens on one loopback port
//! and finds the others on the loopback ports that its sidecar opened.
//!
//! | service | speaks | asks |
//! |---|---|---|
//! | web | HTTP/1.1 | catalog, reviews |
//! | catalog | HTTP/2 | stock |
//! | reviews (v1, v2) | HTTP/1.1 | ratings (v2 only) |
//! | ratings | gRPC | – |
//! | stock | a line protocol over TCP | – |

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    service::service_fn,
};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use super::{
    call::{self, Http1, Http2},
    grpc,
};

/// The books on sale: isbn and title.
pub const BOOKS: [(&str, &str); 4] = [
    ("9780131103627", "The C Programming Language"),
    ("9780201633610", "Design Patterns"),
    ("9780262510875", "Structure and Interpretation of Computer Programs"),
    ("9781593278281", "The Rust Programming Language"),
];

/// How long one service waits for another before it answers without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// One service of the shop, as its command line describes it.
pub struct Shop {
    pub service: String,
    pub version: String,
    pub listen: SocketAddr,
    pub upstreams: BTreeMap<String, SocketAddr>,
}

impl Shop {
    /// Serves until the process is told to stop.
    pub async fn serve(self) -> Result<()> {
        let listener = TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("demo service {} cannot listen on {}", self.service, self.listen))?;
        if self.service == "stock" {
            return accept(listener, |io| async move { stock(io).await }).await;
        }
        let answers = Rc::new(match self.service.as_str() {
            "web" => Answers::Web {
                catalog: Http2::new(self.upstream("catalog")?),
                reviews: Http1::new(self.upstream("reviews")?),
            },
            "catalog" => Answers::Catalog { stock: self.upstream("stock")? },
            "reviews" if self.version == "v1" => Answers::Reviews { ratings: None },
            "reviews" => Answers::Reviews { ratings: Some(Http2::new(self.upstream("ratings")?)) },
            "ratings" => Answers::Ratings,
            other => bail!("the bookshop has no service `{other}`"),
        });
        accept(listener, move |io| {
            let answers = answers.clone();
            async move { serve_http(io, answers).await }
        })
        .await
    }

    fn upstream(&self, name: &str) -> Result<SocketAddr> {
        let found = self.upstreams.get(name).copied();
        found.with_context(|| format!("demo service {} needs --upstream {name}=ADDRESS", self.service))
    }
}

/// What an HTTP service of the shop is.
enum Answers {
    Web { catalog: Http2, reviews: Http1 },
    Catalog { stock: SocketAddr },
    Reviews { ratings: Option<Http2> },
    Ratings,
}

type Reply = Response<call::Body>;

async fn accept<F, Fut>(listener: TcpListener, serve: F) -> Result<()>
where
    F: Fn(TcpStream) -> Fut + 'static,
    Fut: Future<Output = Result<()>> + 'static,
{
    loop {
        let (io, _) = listener.accept().await?;
        io.set_nodelay(true)?;
        let served = serve(io);
        tokio::task::spawn_local(async move {
            // a caller that hangs up is no news to a bookshop
            let _ = served.await;
        });
    }
}

async fn serve_http(io: TcpStream, answers: Rc<Answers>) -> Result<()> {
    let service = service_fn(move |req| {
        let answers = answers.clone();
        async move {
            Ok::<_, Infallible>(match answers.answer(req).await {
                Ok(reply) => reply,
                Err(e) => text(StatusCode::BAD_GATEWAY, format!("{e:#}\n")),
            })
        }
    });
    let served = auto::Builder::new(call::Local).serve_connection(TokioIo::new(io), service).await;
    served.map_err(|e| anyhow::anyhow!(e))
}

impl Answers {
    async fn answer(&self, req: Request<Incoming>) -> Result<Reply> {
        match self {
            Self::Web { catalog, reviews } => web(catalog, reviews, &req).await,
            Self::Catalog { stock } => catalog(*stock, &req).await,
            Self::Reviews { ratings } => review(ratings.as_ref(), &req).await,
            Self::Ratings => rating(req).await,
        }
    }
}

/// The page of one book. A missing review is an ordinary page; a missing catalog is not.
async fn web(catalog: &Http2, reviews: &Http1, req: &Request<Incoming>) -> Result<Reply> {
    let Some(isbn) = req.uri().path().strip_prefix("/book/") else {
        let list: String = BOOKS.iter().map(|(isbn, title)| format!("/book/{isbn}  {title}\n")).collect();
        return Ok(text(StatusCode::OK, list));
    };
    let trace = req.headers().get("x-request-id").cloned();
    let path = format!("/{isbn}");
    let (book, review) = tokio::join!(
        tokio::time::timeout(PATIENCE, catalog.get("catalog", &path, trace.clone())),
        tokio::time::timeout(PATIENCE, reviews.get("reviews", &path, trace)),
    );
    let (status, book) = book.context("catalog took too long")??;
    if status != StatusCode::OK {
        return Ok(text(status, format!("catalog says {status}: {book}")));
    }
    let review = match review {
        Ok(Ok((StatusCode::OK, review))) => review,
        Ok(Ok((status, why))) => format!("no reviews just now ({status} {})\n", why.trim_end()),
        Ok(Err(e)) => format!("no reviews just now ({e:#})\n"),
        Err(_) => "no reviews just now (took too long)\n".into(),
    };
    Ok(text(StatusCode::OK, format!("{book}{review}")))
}

async fn catalog(stock: SocketAddr, req: &Request<Incoming>) -> Result<Reply> {
    let isbn = req.uri().path().trim_start_matches('/');
    let Some((_, title)) = BOOKS.iter().find(|(i, _)| *i == isbn) else {
        return Ok(text(StatusCode::NOT_FOUND, format!("no book {isbn}\n")));
    };
    let left = tokio::time::timeout(PATIENCE, ask_stock(stock, isbn)).await;
    let left = match left {
        Ok(Ok(n)) => format!("{n} in stock"),
        Ok(Err(e)) => format!("stock unknown ({e:#})"),
        Err(_) => "stock unknown (took too long)".into(),
    };
    Ok(text(StatusCode::OK, format!("{title}: {left}\n")))
}

async fn review(ratings: Option<&Http2>, req: &Request<Incoming>) -> Result<Reply> {
    let isbn = req.uri().path().trim_start_matches('/');
    let Some(ratings) = ratings else {
        return Ok(text(StatusCode::OK, "reviews v1: \"could not put it down\"\n".into()));
    };
    let trace = req.headers().get("x-request-id").cloned();
    let stars = match tokio::time::timeout(PATIENCE, grpc::stars(ratings, isbn, trace)).await {
        Ok(Ok(stars)) => "★".repeat(usize::from(stars.min(5))),
        Ok(Err(e)) => format!("no stars ({e:#})"),
        Err(_) => "no stars (took too long)".into(),
    };
    Ok(text(StatusCode::OK, format!("reviews v2: \"could not put it down\" {stars}\n")))
}

async fn rating(req: Request<Incoming>) -> Result<Reply> {
    let path = req.uri().path().to_owned();
    let body = req.into_body().collect().await?.to_bytes();
    Ok(grpc::serve_stars(&path, &body))
}

/// `STOCK <isbn>\n` is answered by `LEFT <n>\n`, any number of times on a connection.
async fn stock(io: TcpStream) -> Result<()> {
    let mut io = BufReader::new(io);
    let mut line = String::new();
    while io.read_line(&mut line).await? > 0 {
        let answer = match line.trim_end().strip_prefix("STOCK ") {
            Some(isbn) => format!("LEFT {}\n", isbn.bytes().map(u32::from).sum::<u32>() % 40),
            None => "WHAT\n".into(),
        };
        io.get_mut().write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

async fn ask_stock(stock: SocketAddr, isbn: &str) -> Result<u32> {
    let mut io = BufReader::new(TcpStream::connect(stock).await.context("connect")?);
    io.get_mut().write_all(format!("STOCK {isbn}\n").as_bytes()).await?;
    let mut line = String::new();
    ensure!(io.read_line(&mut line).await.context("refused by the mesh")? > 0, "refused by the mesh");
    let n = line.trim_end().strip_prefix("LEFT ").with_context(|| format!("it answered `{}`", line.trim_end()))?;
    Ok(n.parse()?)
}

pub fn text(status: StatusCode, body: String) -> Reply {
    let mut reply = Response::new(call::Body::new(Full::new(Bytes::from(body))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=utf-8"));
    reply
}
