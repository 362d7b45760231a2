//! What servers that answer as a test says have in common: a port, and a task for each connection.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};

/// A server on a port of its own. It ends with this.
pub struct ScriptedPeer {
    pub port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl ScriptedPeer {
    /// Starts it; `serve` has each connection for as long as it lasts.
    #[expect(clippy::disallowed_methods, reason = "a test's own tasks")]
    pub async fn start<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = Arc::new(serve);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let serving = serve(stream);
                // A connection that breaks off is part of the script.
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        Self { port, task }
    }
}

impl Drop for ScriptedPeer {
    fn drop(&mut self) {
        self.task.abort();
    }
}
