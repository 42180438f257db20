//! A port mapper for RabbitMQ's nodes, instead of Erlang's `epmd`: it answers with the port of a [gate](super::network), so that the links
//! between the nodes can be cut.
//!
//! The protocol: <https://www.erlang.org/doc/apps/erts/erl_dist_protocol.html#epmd-protocol>.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const REGISTER: u8 = 120;
const REGISTERED: u8 = 118;
const LOOK_UP: u8 = 122;
const FOUND: u8 = 119;
const NAMES: u8 = 110;
/// A node that others can see, over TCP, with the newest and oldest versions of the protocol.
const NODE: [u8; 6] = [77, 0, 0, 6, 0, 5];

/// The names of the running nodes, and the ports to connect to.
#[derive(Clone)]
pub struct PortMapper {
    pub port: u16,
    nodes: Arc<Mutex<HashMap<String, u16>>>,
}

impl PortMapper {
    /// `gates` are the ports to answer with. For other names, such as those of command-line tools, it is the port that they registered.
    pub async fn start(gates: HashMap<String, u16>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mapper = Self { port: listener.local_addr().unwrap().port(), nodes: Arc::default() };
        let (answering, gates) = (mapper.clone(), Arc::new(gates));
        tokio::spawn(async move {
            while let Ok((peer, _)) = listener.accept().await {
                let (mapper, gates) = (answering.clone(), Arc::clone(&gates));
                // An error means that the peer is gone.
                tokio::spawn(async move { mapper.answer(peer, &gates).await });
            }
        });
        mapper
    }

    async fn answer(&self, mut peer: TcpStream, gates: &HashMap<String, u16>) -> io::Result<()> {
        let mut request = vec![0; usize::from(peer.read_u16().await?)];
        peer.read_exact(&mut request).await?;
        match request.split_first() {
            Some((&REGISTER, rest)) => {
                let [high, low, ..] = rest else { return Ok(()) };
                let length = usize::from(u16::from_be_bytes([rest[8], rest[9]]));
                let name = String::from_utf8_lossy(&rest[10..10 + length]).into_owned();
                let own = u16::from_be_bytes([*high, *low]);
                self.nodes.lock().unwrap().insert(name.clone(), *gates.get(&name).unwrap_or(&own));
                // Distinguishes a node from an earlier one of the same name.
                let creation = fastrand::u32(1..);
                peer.write_all(&[&[REGISTERED, 0][..], &creation.to_be_bytes()].concat()).await?;
                // The node is registered for as long as this connection is open.
                let ended = peer.read_u8().await;
                self.nodes.lock().unwrap().remove(&name);
                ended.map(drop)
            }
            Some((&LOOK_UP, name)) => {
                let port = self.nodes.lock().unwrap().get(&*String::from_utf8_lossy(name)).copied();
                let Some(port) = port else { return peer.write_all(&[FOUND, 1]).await };
                let length = u16::try_from(name.len()).unwrap_or(0).to_be_bytes();
                let answer = [&[FOUND, 0], &port.to_be_bytes()[..], &NODE, &length, name, &[0, 0]];
                peer.write_all(&answer.concat()).await
            }
            Some((&NAMES, _)) => {
                let nodes = self.nodes.lock().unwrap().clone();
                let mut answer = u32::from(self.port).to_be_bytes().to_vec();
                for (name, port) in nodes {
                    answer.extend(format!("name {name} at port {port}\n").into_bytes());
                }
                peer.write_all(&answer).await
            }
            _ => Ok(()),
        }
    }
}
