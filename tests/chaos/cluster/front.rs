//! How the publisher and the observer reach RabbitMQ: as through a load balancer that knows at once which nodes are in service.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Front {
    port: u16,
    nodes: Vec<u16>,
    in_service: watch::Sender<Vec<bool>>,
}

impl Front {
    pub async fn start(ports: Vec<u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let nodes = ports.clone();
        let in_service = watch::Sender::new(vec![true; ports.len()]);
        let seen = in_service.subscribe();
        let next = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let first = next.fetch_add(1, Ordering::Relaxed);
                let usable = (0..ports.len()).map(|offset| (first + offset) % ports.len());
                let Some(node) = usable.into_iter().find(|node| seen.borrow()[*node]) else { continue };
                let (port, mut seen) = (ports[node], seen.clone());
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
                        return;
                    }
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = seen.wait_for(|in_service| !in_service[node]) => {}
                    }
                });
            }
        });
        Self { port, nodes, in_service }
    }

    pub fn url(&self) -> String {
        url(self.port)
    }

    /// The URLs of the nodes that are in service.
    pub fn nodes_in_service(&self) -> Vec<String> {
        self.nodes.iter().zip(&*self.in_service.borrow()).filter(|(_, is)| **is).map(|(port, _)| url(*port)).collect()
    }

    /// Takes a node out of service, which cuts its connections, or back into service.
    pub fn set_in_service(&self, node: usize, is: bool) {
        self.in_service.send_modify(|in_service| in_service[node] = is);
    }
}

fn url(port: u16) -> String {
    format!("amqp://127.0.0.1:{port}/%2f?heartbeat=5")
}
