//! Members whose server of NATS does nothing for them, or wants another password.

use super::{
    members::arrived,
    setup::{Small, says},
};
use crate::support::{
    nats_server::NatsServer,
    process::{Server, free_port},
};

/// As one that is cut off from the others, it takes connections and answers pings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_serves_no_streams_is_left_for_another() {
    let port = free_port();
    let _idle = Server::start("nats-server", vec!["-p".into(), port.to_string()], port).await;
    let mut serving = NatsServer::start("").await;
    serving.server.kill().await;
    let small = Small::start().await;
    let url = format!("nats://127.0.0.1:{port},{}", serving.url());
    let mut relay = small.member(&format!("url = {url:?}\nmember = \"a\""), "");
    relay.start();
    says(&relay, "is JetStream enabled").await;
    serving.server.restart().await;
    relay.ready().await;
    small.load(0, 5).await;
    arrived(&small, 5, &[&relay]).await;
    assert!(relay.log().contains("another one is tried"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_password_is_read_at_the_next_connection() {
    let user = |password: &str| format!("authorization {{ user: relay, password: {password:?} }}");
    let mut server = NatsServer::start(&user("old-password")).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nats.password");
    std::fs::write(&file, "old-password\n").unwrap();
    let small = Small::start().await;
    let url = server.url();
    let mut relay = small.member(
        &format!("url = {url:?}\nmember = \"a\"\nuser = \"relay\"\npassword_file = {file:?}"),
        "",
    );
    relay.start();
    relay.ready().await;
    small.load(0, 5).await;
    arrived(&small, 5, &[&relay]).await;
    server.reconfigure(&user("new-password")).await;
    server.server.restart().await;
    says(&relay, "no NATS server can be reached: authorization violation").await;
    std::fs::write(&file, "new-password\n").unwrap();
    relay.ready().await;
    small.load(5, 5).await;
    arrived(&small, 10, &[&relay]).await;
}
