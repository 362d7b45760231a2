//! The HTTP side of the simulator's port: connections that are not for the gateway come here.

use std::{net::SocketAddr, sync::Arc};

use axum::Router;
use tokio::{net::TcpStream, sync::mpsc};

use crate::{
    control,
    peer::{ListenerOfAccepted, Peer},
    rest,
    world::World,
};

/// Serves the connections that come through the channel, until the simulation stops.
pub(crate) async fn serve(
    world: Arc<World>,
    address: SocketAddr,
    connections: mpsc::Receiver<TcpStream>,
) {
    let app: Router = rest::routes(&world).merge(control::routes(&world));
    let service = app.into_make_service_with_connect_info::<Peer>();
    let stop = world.stop.clone().cancelled_owned();
    let served = axum::serve(ListenerOfAccepted { address, connections }, service);
    // It ends when it is told to, and in no other way.
    served.with_graceful_shutdown(stop).await.ok();
}
