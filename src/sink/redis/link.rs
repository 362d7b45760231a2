//! The connection to Redis: one server, the master that sentinels name, or a cluster.
//!
//! It is made once and never mends itself: a lost link is dropped with all that it had queued, and
//! [`Link::open`] makes a new one, with the secrets and certificates as they are then.
//!
//! The library's own retries are switched off where it has any (the cluster),
//! because a retry behind our back could let a later event overtake.

use std::time::Duration;

use futures_util::{FutureExt, future::BoxFuture};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, Pipeline, RedisError, RedisResult, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};

use super::{
    answer::{self, About},
    settings::Settings,
};
use crate::{
    base::tls,
    config::{Secret, SecretRef},
    sink::{Cause, race},
};

/// How often an idle connection is asked for a sign of life: more often than firewalls forget a
/// connection (a minute, at the strictest) and servers close one (`timeout`, seldom under a minute).
const PING_EVERY: Duration = Duration::from_secs(20);

/// A connection that stands.
#[derive(Clone)]
pub(crate) enum Link {
    /// To one server.
    One(MultiplexedConnection),
    /// To all servers of a cluster.
    Cluster(ClusterConnection),
}

impl Link {
    /// Connects and makes sure that the server talks to us. Of several servers, the one at `server` is the
    /// first to be dialled; it is then the one that answered, or the next where none did.
    pub(crate) async fn open(
        settings: &Settings,
        timeout: Duration,
        server: &mut usize,
    ) -> Result<Self, Cause> {
        let access = Access::read(settings).await?;
        let limits = config(timeout);
        let dial = async |node: usize| {
            let node = access.nodes.get(node).cloned().ok_or_else(no_url)?;
            if settings.cluster {
                return access.cluster(settings, node, timeout).await;
            }
            if let Some(master) = &settings.sentinel_master {
                let link = access.sentinel(settings, master, node, &limits).await;
                return link.map_err(of_server)?.greeted().await;
            }
            access.one(settings, node, &limits).await
        };
        match race::first(access.nodes.len(), *server, timeout, dial).await {
            Ok((answered, link)) => {
                *server = answered;
                Ok(link)
            }
            Err(cause) => {
                *server += 1;
                Err(cause)
            }
        }
    }

    /// Without a password the library connects to a server that wants one, and says nothing.
    async fn greeted(mut self) -> Result<Self, Cause> {
        self.ping().await?;
        Ok(self)
    }

    /// Whatever it is, it takes commands.
    pub(crate) fn connection(&mut self) -> &mut (dyn ConnectionLike + Send) {
        match self {
            Self::One(connection) => connection,
            Self::Cluster(connection) => connection,
        }
    }

    /// Asks for a sign of life.
    pub(crate) async fn ping(&mut self) -> Result<(), Cause> {
        self.request(&redis::cmd("PING")).await.map(drop)
    }

    /// Sends a command and hands back its answer.
    pub(crate) async fn request(&mut self, command: &Cmd) -> Result<Value, Cause> {
        let answer = self.connection().req_packed_command(command).await;
        answer.and_then(Value::extract_error).map_err(of_server)
    }

    /// Sends commands and hands back the answer to each. The servers of a cluster take theirs one by
    /// one, for a pipeline goes to one server.
    pub(crate) async fn request_all<'c>(
        &mut self,
        commands: impl IntoIterator<Item = &'c Cmd>,
    ) -> Result<Vec<Answered>, Cause> {
        let commands: Vec<&Cmd> = commands.into_iter().collect();
        if matches!(self, Self::Cluster(_)) {
            let mut answers = Vec::with_capacity(commands.len());
            for command in commands {
                answers.push(self.request(command).await);
            }
            return Ok(answers);
        }
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command.clone());
        }
        let answers = self.connection().req_packed_commands(&pipeline, 0, pipeline.len()).await;
        let each = |answer: Value| answer.extract_error().map_err(of_server);
        answers.map(|answers| answers.into_iter().map(each).collect()).map_err(of_server)
    }
}

/// Keeps a connection alive that is idle. It is kept beside the connection: a wait that is given up, because
/// there is something else to do, goes on with the next, and so does a ping that is not answered yet.
pub(crate) struct KeepAlive(BoxFuture<'static, (Link, Cause)>);

impl KeepAlive {
    pub(crate) fn new(link: &Link) -> Self {
        Self(ping_repeatedly(link.clone()).boxed())
    }

    /// Asks the connection for a sign of life every now and then; returns when there is none. Safe to drop.
    pub(crate) async fn lost(&mut self) -> Cause {
        let (link, cause) = (&mut self.0).await;
        self.0 = ping_repeatedly(link).boxed();
        cause
    }
}

async fn ping_repeatedly(mut link: Link) -> (Link, Cause) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        match link.ping().await {
            // Busy, it lives.
            Ok(()) | Err(Cause::Busy { .. }) => {}
            Err(cause) => return (link, cause),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is that of map_err")]
fn of_server(error: RedisError) -> Cause {
    answer::cause(&error, About::Server)
}

fn no_url() -> Cause {
    Cause::Down("no url is configured".into())
}

/// What became of one command among several.
type Answered = Result<Value, Cause>;

/// What is read again for each connection.
struct Access {
    nodes: Vec<ConnectionInfo>,
    password: Option<Secret>,
    sentinel_password: Option<Secret>,
    certificates: Option<TlsCertificates>,
}

impl Access {
    async fn read(settings: &Settings) -> Result<Self, Cause> {
        let nodes: RedisResult<Vec<_>> =
            settings.nodes().map(IntoConnectionInfo::into_connection_info).collect();
        Ok(Self {
            nodes: nodes.map_err(of_server)?,
            password: read(settings.password.as_ref()).await?,
            sentinel_password: read(settings.sentinel_password.as_ref()).await?,
            certificates: certificates(settings).await?,
        })
    }

    /// The library would log in by itself, and say of whatever the server answers that the password is
    /// wrong; a server that is full or a proxy without a server behind it answers too.
    async fn one(
        &self,
        settings: &Settings,
        node: ConnectionInfo,
        limits: &AsyncConnectionConfig,
    ) -> Result<Link, Cause> {
        let db = node.redis_settings().db();
        let info = node.redis_settings().clone().set_db(0);
        let node = node.set_redis_settings(info);
        let client = match &self.certificates {
            Some(certificates) => Client::build_with_tls(node, certificates.clone()),
            None => Client::open(node),
        };
        let connection =
            client.map_err(of_server)?.get_multiplexed_async_connection_with_config(limits).await;
        let mut link = Link::One(connection.map_err(of_server)?);
        if let Some(password) = &self.password {
            let mut login = redis::cmd("AUTH");
            login.arg(settings.user.as_ref()).arg(password.expose());
            let answer = link.connection().req_packed_command(&login).await;
            let refused = |error: RedisError| answer::of_login(&error, password);
            answer.and_then(Value::extract_error).map_err(refused)?;
        }
        if db != 0 {
            link.request(redis::cmd("SELECT").arg(db)).await?;
        }
        link.greeted().await
    }

    async fn sentinel(
        &self,
        settings: &Settings,
        master: &str,
        sentinel: ConnectionInfo,
        limits: &AsyncConnectionConfig,
    ) -> RedisResult<Link> {
        let tls = self.nodes.iter().any(|node| is_tls(node.addr()));
        let db = self.nodes.first().map_or(0, |node| node.redis_settings().db());
        let sentinels = [sentinel.addr().clone()];
        let mut builder =
            SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?
                .set_client_to_redis_db(db);
        if tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = &self.certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
        if let Some(user) = &settings.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password.expose());
        }
        if let Some(user) = &settings.sentinel_user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = &self.sentinel_password {
            builder = builder.set_client_to_sentinel_password(password.expose());
        }
        let mut client = builder.build()?;
        client.get_async_connection_with_config(limits).await.map(Link::One)
    }

    /// A cluster is found through any of its servers.
    async fn cluster(
        &self,
        settings: &Settings,
        node: ConnectionInfo,
        timeout: Duration,
    ) -> Result<Link, Cause> {
        let mut builder = ClusterClient::builder([node])
            .retries(0)
            .connection_timeout(race::dial_limit(timeout))
            .response_timeout(timeout);
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        if let Some(user) = &settings.user {
            builder = builder.username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.password(password.expose());
        }
        let client = builder.build().map_err(of_server)?;
        let connection = client.get_async_connection().await.map_err(of_server)?;
        Link::Cluster(connection).greeted().await
    }
}

/// The library gives up after 1 s for connecting and 0.5 s for an answer, which a server that rewrites
/// its append-only file easily exceeds; and a command that was given up may have run.
fn config(timeout: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(race::dial_limit(timeout)))
        .set_response_timeout(Some(timeout))
}

fn is_tls(address: &ConnectionAddr) -> bool {
    matches!(address, ConnectionAddr::TcpTls { .. })
}

async fn read(secret: Option<&SecretRef>) -> Result<Option<Secret>, Cause> {
    match secret {
        Some(secret) => secret.read().await.map(Some).map_err(|error| Cause::Down(error.into())),
        None => Ok(None),
    }
}

async fn certificates(settings: &Settings) -> Result<Option<TlsCertificates>, Cause> {
    let [root_cert, cert, key] = tls::pem_files(
        settings.ca_file.as_deref(),
        settings.client_cert_file.as_deref(),
        settings.client_key_file.as_deref(),
    )
    .await
    .map_err(|error| Cause::Down(error.into()))?
    .map(|content| content.map(|content| content.to_vec()));
    let client_tls =
        cert.zip(key).map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
    Ok((root_cert.is_some() || client_tls.is_some())
        .then_some(TlsCertificates { client_tls, root_cert }))
}
