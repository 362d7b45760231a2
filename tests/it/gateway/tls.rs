//! `wss`: the simulation behind a TLS listener, with a certificate of the tests' own authority.

use std::{net::SocketAddr, sync::Arc};

use astro_sim::{Options, Sim};
use futures_util::{StreamExt, stream::FuturesUnordered};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use super::{
    ROOM, SOON,
    bench::{Bench, Want, millis, spawn, targets},
};
use crate::support::{daemon::Relay, sinks::certificate, wait::until};

const WANTS: [Want<'_>; 1] = [("a", "channel.tips", Some(ROOM))];

/// Speaks TLS at `listen` and hands on what is said to `behind`.
async fn tls(listen: &str, behind: SocketAddr) -> (SocketAddr, AbortOnDropHandle<()>) {
    astro_relay::base::tls::install_provider();
    let chain = CertificateDer::pem_file_iter(certificate("server.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificate("server.key")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((listen, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async move {
        let mut connections = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, acceptor) = (accepted.unwrap().0, acceptor.clone());
                    connections.push(async move {
                        // A client that does not trust us ends it here.
                        let mut near = acceptor.accept(stream).await.ok()?;
                        let mut far = TcpStream::connect(behind).await.ok()?;
                        copy_bidirectional(&mut near, &mut far).await.ok()
                    });
                }
                Some(_) = connections.next() => {}
            }
        }
    };
    (address, spawn(serve))
}

/// A gateway at `host`, whose TLS listener is at `listen`.
async fn bench(host: &str, listen: &str, ca: Option<&str>) -> (Bench, AbortOnDropHandle<()>) {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let (address, listener) = tls(listen, sim.address()).await;
    let bench = Bench::at(sim, targets(&WANTS), |astro| {
        astro.url = format!("wss://{host}:{}", address.port());
        astro.ca_file = ca.map(|name| certificate(name).into());
        astro.backoff_max = millis(100);
    });
    (bench, listener)
}

/// Why it could not be connected.
async fn refusal(bench: &Bench) -> String {
    until("it is told", SOON, async || {
        bench.state().connections.values().next()?.last_error.clone()
    })
    .await
}

#[tokio::test]
async fn a_certificate_of_a_trusted_authority_is_accepted() {
    for host in ["localhost", "127.0.0.1"] {
        let (bench, _listener) = bench(host, "127.0.0.1", Some("ca.pem")).await;
        bench.confirmed(1).await;
        bench.carries("channel.tips", ROOM, 1).await;
        // And a handover, which dials again.
        bench.sim.drain(None);
        until("it has moved", SOON, async || bench.connection(1).unwrap().ended).await;
        bench.carries("channel.tips", ROOM, 2).await;
        bench.stop().await;
    }
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused_and_shown() {
    let (bench, _listener) = bench("127.0.0.2", "127.0.0.2", Some("ca.pem")).await;
    let why = refusal(&bench).await;
    assert!(why.contains("TLS failed") && why.contains("is not for 127.0.0.2"), "{why}");
    assert_eq!(bench.sim.stats().opened, 0);
}

#[tokio::test]
async fn an_authority_that_is_not_trusted_is_refused_and_shown() {
    let (bench, _listener) = bench("localhost", "127.0.0.1", None).await;
    let why = refusal(&bench).await;
    assert!(
        why.contains("TLS failed") && why.contains("signed by nobody who is trusted here"),
        "{why}"
    );
    assert_eq!(bench.sim.stats().opened, 0);
}

#[tokio::test]
async fn an_authority_of_the_system_is_trusted() {
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap();
    let (address, _listener) = tls("127.0.0.1", sim.address()).await;
    let url = format!("wss://localhost:{}", address.port());
    // A relay without a sink is not ready.
    let sink = "[sinks.out]\ntype = \"stdout\"\n";
    let mut relay = Relay::new(&url, &sim.api_url(), "channel.tips", ROOM, sink);
    // This is how a system is given other authorities; a process of its own has none of ours.
    relay.start_in(&[("SSL_CERT_FILE", &certificate("ca.pem"))]);
    relay.ready().await;
    assert_eq!(sim.stats().opened, 1);
}
