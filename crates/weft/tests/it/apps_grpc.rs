//! gRPC as grpcio speaks it: four kinds of call, trailers, and what a refusal looks like to its client.

use std::process::Command;

use crate::mesh::{Mesh, PATIENCE, free_port, peer, text, write};

/// Bytes in, bytes out: no compiler of .proto files is needed.
const SERVER: &str = r#"
import grpc, sys, time
from concurrent import futures

def unary(request, context):
    context.set_trailing_metadata((("x-trailer", "of-unary"),))
    if request == b"fail":
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as asked: 100 %")
    return b"unary:" + request

def server_stream(request, context):
    for n in range(int(request)):
        yield b"part-%d" % n
    context.set_trailing_metadata((("x-trailer", "of-stream"),))

def client_stream(requests, context):
    first = next(requests)
    if first == b"early":
        # answers while its caller still speaks
        return b"early answer"
    total = len(first) + sum(len(r) for r in requests)
    return b"%d bytes" % total

def bidi(requests, context):
    for r in requests:
        yield b"echo:" + r

class All(grpc.GenericRpcHandler):
    def service(self, details):
        kinds = {
            "/t.T/Unary": grpc.unary_unary_rpc_method_handler(unary),
            "/t.T/Server": grpc.unary_stream_rpc_method_handler(server_stream),
            "/t.T/Client": grpc.stream_unary_rpc_method_handler(client_stream),
            "/t.T/Bidi": grpc.stream_stream_rpc_method_handler(bidi),
        }
        return kinds.get(details.method)

server = grpc.server(futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers((All(),))
server.add_insecure_port("127.0.0.1:" + sys.argv[1])
server.start()
server.wait_for_termination()
"#;

const CLIENT: &str = r#"
import grpc, queue, sys

channel = grpc.insecure_channel(sys.argv[1])
grpc.channel_ready_future(channel).result(timeout=20)
LIMIT = 20

def said(call):
    return dict(call.trailing_metadata())

def all_kinds():
    answer, call = channel.unary_unary("/t.T/Unary").with_call(b"hi", timeout=LIMIT)
    assert answer == b"unary:hi", answer
    assert said(call)["x-trailer"] == "of-unary", call.trailing_metadata()

    try:
        channel.unary_unary("/t.T/Unary")(b"fail", timeout=LIMIT)
        assert False, "it must fail"
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.FAILED_PRECONDITION, e
        assert e.details() == "as asked: 100 %", e.details()
        assert said(e)["x-trailer"] == "of-unary", e

    big = b"x" * 3_000_000
    assert channel.unary_unary("/t.T/Unary")(big, timeout=LIMIT) == b"unary:" + big

    call = channel.unary_stream("/t.T/Server")(b"200", timeout=LIMIT)
    assert list(call) == [b"part-%d" % n for n in range(200)]
    assert said(call)["x-trailer"] == "of-stream"

    answer = channel.stream_unary("/t.T/Client")(iter([b"abc"] * 300), timeout=LIMIT)
    assert answer == b"900 bytes", answer

    # one message at a time, each answered before the next is sent, long before the half-close
    out = queue.Queue()
    call = channel.stream_stream("/t.T/Bidi")(iter(out.get, None), timeout=LIMIT)
    for n in range(50):
        out.put(b"%d" % n)
        assert next(call) == b"echo:%d" % n
    out.put(None)
    assert list(call) == []
    assert call.code() == grpc.StatusCode.OK

    # the whole answer, status and all, while the client's side stays open
    out = queue.Queue()
    out.put(b"early")
    call = channel.stream_unary("/t.T/Client").future(iter(out.get, None), timeout=LIMIT)
    assert call.result(timeout=LIMIT) == b"early answer"
    assert call.code() == grpc.StatusCode.OK
    out.put(None)

    # a deadline and a cancellation are what they are without a mesh
    out = queue.Queue()
    call = channel.stream_stream("/t.T/Bidi")(iter(out.get, None), timeout=0.3)
    try:
        next(call)
        assert False, "the deadline must pass"
    except grpc.RpcError as e:
        assert e.code() == grpc.StatusCode.DEADLINE_EXCEEDED, e
    out.put(None)
    print("all kinds")

def one(wanted):
    try:
        channel.unary_unary("/t.T/Unary")(b"hi", timeout=LIMIT)
        print("0")
    except grpc.RpcError as e:
        print(e.code().value[0], e.details())

all_kinds() if sys.argv[2] == "all" else one(sys.argv[2])
"#;

const DENY_ALL: &str =
    "apiVersion: weft.dev/v1\nkind: MeshDefaults\nmetadata:\n  name: default\nspec:\n  authorization: deny\n";

#[test]
fn e2e_trf_35_grpcio_in_all_four_kinds_and_its_statuses() {
    let Some(python) = peer("PYTHON") else { return };
    let python = python.to_str().unwrap();
    let mesh = Mesh::start();
    let (server, client) = (write(mesh.dir.path(), "server.py", SERVER), write(mesh.dir.path(), "client.py", CLIENT));
    let port = free_port().to_string();
    let declared = format!("grpc=50051:{port}");
    let mut api = mesh.run("api", Some(&declared), &[], &[python, server.to_str().unwrap(), &port]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_synced(&[&web]);
    let ask = |what: &str| {
        let mut command = Command::new("timeout");
        command
            .arg(PATIENCE.as_secs().to_string())
            .arg(python)
            .arg(&client)
            .arg(web.upstreams[0].to_string())
            .arg(what);
        let out = command.output().unwrap();
        assert!(out.status.success(), "{what}: {}{}{}", text(&out.stdout), text(&out.stderr), web.log());
        text(&out.stdout)
    };
    assert_eq!(ask("all"), "all kinds\n");

    mesh.apply(DENY_ALL);
    let denied = ask("one");
    assert!(denied.starts_with("7 weft: denied"), "{denied}");
    mesh.apply(&DENY_ALL.replace("authorization: deny", "authorization: allow"));
    assert_eq!(ask("one"), "0\n");

    // an instance that is not well, and the service without any
    let unwell = format!("grpc=50051:{}", free_port());
    let _unwell = mesh.sidecar("api", Some(&unwell), &[]);
    api.stop();
    mesh.until_passing("api", 0);
    let nobody = ask("one");
    assert!(nobody.starts_with("14 weft: no_healthy_endpoint"), "{nobody}");
}

#[test]
fn e2e_l4t_04_grpcio_on_a_port_that_declares_nothing() {
    let Some(python) = peer("PYTHON") else { return };
    let python = python.to_str().unwrap();
    let mesh = Mesh::start();
    let (server, client) = (write(mesh.dir.path(), "server.py", SERVER), write(mesh.dir.path(), "client.py", CLIENT));
    let port = free_port().to_string();
    let _api = mesh.run("api", Some(&port), &[], &[python, server.to_str().unwrap(), &port]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_synced(&[&web]);
    let out =
        Command::new("timeout").args(["30", python]).arg(&client).arg(web.upstreams[0].to_string()).arg("all").output();
    let out = out.unwrap();
    assert_eq!(text(&out.stdout), "all kinds\n", "{}{}", text(&out.stderr), web.log());
}
