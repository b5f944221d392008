//! What a resting stream and an endpoint cost the server.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_model::{Mono, Revision, Uid};
use weft_snapshot::fragment::{Balance, Collection};
use weft_wire::{
    delta::{Change, Client, Collections, Limits, Session},
    fragment::encode,
    grpc::{
        self, AggregatedDiscoveryService, AggregatedDiscoveryServiceClient, AggregatedDiscoveryServiceServer,
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, PeerIo, Request, Response, Routes, Status, Streaming,
    },
    name::EntryName,
};

use crate::world;

/// Counts what this thread holds; tests run on threads of their own.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its signature; it only counts and passes on")]
// SAFETY: every call is passed on to `System` unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's obligations are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's obligations are the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

fn held() -> usize {
    usize::try_from(HELD.with(Cell::get)).unwrap_or(0)
}

fn endpoints(n: usize) -> Vec<Change> {
    let collection = Collection::Endpoints(world::service_key(0));
    (0..n)
        .map(|id| {
            let uid = Uid::parse(&format!("shop/service-of-some-length/node-{id:05}/instance-{id:05}")).unwrap();
            let name = EntryName { collection: collection.clone(), entry: Some(uid.clone()) };
            Change::Put(name, encode(&world::endpoint(uid, 1)))
        })
        .collect()
}

/// What a sidecar of so many upstreams subscribes to: service, endpoints and routes of each.
const UPSTREAMS: u64 = 16;

fn subscriptions() -> Vec<Collection> {
    (0..UPSTREAMS)
        .flat_map(|n| {
            let key = world::service_key(n);
            let consumer = "shop".parse().unwrap();
            [
                Collection::Service(key.clone()),
                Collection::Endpoints(key.clone()),
                Collection::Routes { service: key, consumer },
            ]
        })
        .collect()
}

fn services() -> Vec<Change> {
    let of = |n| {
        let key = world::service_key(n);
        let bytes = encode(&world::service(key.clone(), 80, Balance::PeakEwma));
        Change::Put(EntryName::only(Collection::Service(key)), bytes)
    };
    (0..UPSTREAMS).map(of).collect()
}

#[test]
fn an_endpoint_costs_at_most_2_kib() {
    const N: usize = 5_000;
    let mut all = Collections::new();
    all.apply(Revision::new(1, 1), endpoints(N)).unwrap();
    // changing them all again and again must not make it grow
    for n in 2..10 {
        let mut changes = endpoints(N);
        for change in &mut changes {
            let Change::Put(name, bytes) = change else { continue };
            *bytes = encode(&world::endpoint(name.entry.clone().unwrap(), n));
        }
        all.apply(Revision::new(1, u64::from(n)), changes).unwrap();
    }
    let with = held();
    drop(all);
    let each = (with - held()) / N;
    assert!((300..=2048).contains(&each), "{each} bytes for an endpoint");
}

#[test]
fn a_resting_session_costs_little() {
    const N: usize = 50;
    let mut all = Collections::new();
    all.apply(Revision::new(1, 1), services()).unwrap();
    let mut sessions: Vec<Session> = Vec::with_capacity(N);
    for n in 0..N {
        let mut client = Client::new("client");
        client.subscribe(subscriptions());
        let mut session = Session::new(n as u64, Limits::default());
        session.on_request(Mono::ZERO, client.connect()).unwrap();
        for response in session.poll(Mono::ZERO, &all, &|_| true).send {
            let (ack, _) = client.on_response(response, |set| world::build(set.fragments)).unwrap();
            session.on_request(Mono::ZERO, ack).unwrap();
        }
        assert!(session.is_current(&all));
        sessions.push(session);
    }
    let with = held();
    drop(sessions);
    let each = (with - held()) / N;
    assert!((1000..=24 << 10).contains(&each), "{each} bytes for a session with {UPSTREAMS} upstreams");
}

/// The same as a server sees it: gRPC, HTTP/2 and its buffers included.
struct Discovery {
    all: Arc<Collections>,
    current: Arc<AtomicUsize>,
}

#[grpc::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        assert_eq!(request.extensions().get::<&'static str>(), Some(&"peer"), "the handler learns who asks");
        let mut requests = request.into_inner();
        let (all, current) = (Arc::clone(&self.all), Arc::clone(&self.current));
        let (send, receive) = mpsc::channel(1);
        #[expect(clippy::disallowed_methods, reason = "a test's server; it ends with its stream")]
        tokio::spawn(async move {
            let mut session = Session::new(1, Limits::default());
            while let Ok(Some(request)) = requests.message().await {
                session.on_request(Mono::ZERO, request).unwrap();
                for response in session.poll(Mono::ZERO, &all, &|_| true).send {
                    send.send(Ok(response)).await.unwrap();
                }
                current.fetch_add(usize::from(session.is_current(&all)), Relaxed);
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

/// A proxy's streams share its connection, so the stream is counted apart from what HTTP/2 takes for the connection
/// (8 KiB to read, 16 KiB to write, header tables: the h2 crate's own numbers).
#[test]
fn reg_12_a_resting_stream_costs_at_most_32_kib() {
    let shared = cost_of_a_stream(40, 1);
    assert!((4096..=32 << 10).contains(&shared), "{shared} bytes for a resting stream");
    let alone = cost_of_a_stream(40, 40);
    println!("{shared} bytes for a stream, {alone} for a stream with a connection of its own");
    assert!((shared..=72 << 10).contains(&alone), "{alone} bytes for a resting stream and its connection");
}

fn cost_of_a_stream(streams: usize, connections: usize) -> usize {
    let (to_server, accepted) = mpsc::channel(connections);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // the clients live on a thread of their own, so that only the server is counted here
    let clients = std::thread::spawn(move || clients(streams, connections, &to_server, stopped));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let each = runtime.block_on(async {
        let mut all = Collections::new();
        all.apply(Revision::new(1, 1), services()).unwrap();
        let current = Arc::new(AtomicUsize::new(0));
        let discovery = Discovery { all: Arc::new(all), current: Arc::clone(&current) };
        let routes = Routes::new(AggregatedDiscoveryServiceServer::new(discovery));
        let before = held();
        let serving = grpc::serve(routes, ReceiverStream::new(accepted), std::future::pending());
        let resting = async {
            while current.load(Relaxed) < streams {
                tokio::task::yield_now().await;
            }
            (held() - before) / streams
        };
        tokio::select! {
            biased; // either ends the test
            ended = serving => panic!("the server ended: {ended:?}"),
            each = resting => each,
        }
    });
    stop.send(()).unwrap();
    clients.join().unwrap();
    each
}

type Accepted = std::io::Result<PeerIo<tokio::io::DuplexStream, &'static str>>;

fn clients(
    streams: usize,
    connections: usize,
    to_server: &mpsc::Sender<Accepted>,
    stopped: tokio::sync::oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = || {
            let to_server = to_server.clone();
            let connect = move || {
                let to_server = to_server.clone();
                async move {
                    let (mine, theirs) = tokio::io::duplex(4096);
                    to_server.send(Ok(PeerIo { io: theirs, peer: "peer" })).await.map_err(std::io::Error::other)?;
                    Ok(mine)
                }
            };
            grpc::channel("control", connect).unwrap()
        };
        let channels: Vec<_> = (0..connections).map(|_| channel()).collect();
        let mut open = Vec::new();
        for channel in channels.iter().cycle().take(streams) {
            let mut client = Client::new("client");
            client.subscribe(subscriptions());
            let (send, receive) = mpsc::channel(4);
            send.send(client.connect()).await.unwrap();
            let mut service = AggregatedDiscoveryServiceClient::new(channel.clone());
            let answer = service.delta_aggregated_resources(ReceiverStream::new(receive)).await.unwrap();
            let mut responses = answer.into_inner();
            while client.applied().is_none() {
                let response = responses.message().await.unwrap().unwrap();
                let (ack, _) = client.on_response(response, |set| world::build(set.fragments)).unwrap();
                send.send(ack).await.unwrap();
            }
            open.push((service, responses, send));
        }
        let _ = stopped.await;
    });
}
