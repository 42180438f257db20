//! The links between the servers of a cluster, and between clients and servers. Each server is reached through a gate, a proxy that knows
//! who connects to it, and holds or cuts what one party sends to another.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Party {
    /// A worker, or a program for operators.
    Client,
    /// A server, by its number.
    Server(usize),
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Network {
    /// The processes of the servers, by their numbers.
    processes: Arc<Mutex<HashMap<usize, u32>>>,
    conditions: watch::Sender<Conditions>,
}

#[derive(Clone, Default)]
struct Conditions {
    /// The links on which nothing passes in either direction, from who connects to the server.
    held: HashSet<(Party, usize)>,
    /// Open connections of a link are closed when its number changes.
    cuts: HashMap<(Party, usize), u32>,
}

impl Conditions {
    fn cuts(&self, link: (Party, usize)) -> u32 {
        self.cuts.get(&link).copied().unwrap_or(0)
    }
}

impl Network {
    pub fn new() -> Self {
        Self { processes: Arc::default(), conditions: watch::Sender::default() }
    }

    /// Says which process a server is, or that it has none now.
    pub fn set_process(&self, server: usize, process: Option<u32>) {
        let mut processes = self.processes.lock().unwrap();
        match process {
            Some(process) => processes.insert(server, process),
            None => processes.remove(&server),
        };
    }

    /// Opens a gate to a server that listens on this port of this machine, now or later. Returns the gate's port.
    pub async fn gate(&self, server: usize, port: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = listener.local_addr().unwrap();
        let network = self.clone();
        tokio::spawn(async move {
            while let Ok((client, from)) = listener.accept().await {
                let network = network.clone();
                tokio::spawn(async move {
                    let link = (network.who_connects(from, gate), server);
                    network.connect(client, port, link).await;
                });
            }
        });
        gate.port()
    }

    async fn connect(&self, client: TcpStream, port: u16, link: (Party, usize)) {
        let mut seen = self.conditions.subscribe();
        let cuts = seen.borrow().cuts(link);
        let passing = async {
            // Who connects to a server that cannot be reached hears nothing.
            self.wait_until_open(link).await;
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
            if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
                return;
            }
            let (client_in, client_out) = client.into_split();
            let (server_in, server_out) = server.into_split();
            tokio::select! {
                () = self.pass(client_in, server_out, link) => {}
                () = self.pass(server_in, client_out, link) => {}
            }
        };
        tokio::select! {
            biased;
            _ = seen.wait_for(|conditions| conditions.cuts(link) != cuts) => {}
            () = passing => {}
        }
    }

    async fn pass(
        &self,
        mut from: impl AsyncReadExt + Unpin,
        mut to: impl AsyncWriteExt + Unpin,
        link: (Party, usize),
    ) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            self.wait_until_open(link).await;
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }

    async fn wait_until_open(&self, link: (Party, usize)) {
        // An error would mean that the sender is gone, and the sender is our own field.
        drop(self.conditions.subscribe().wait_for(|conditions| !conditions.held.contains(&link)).await);
    }

    /// Holds everything between a server and these others, in both directions, as an unplugged cable does.
    pub fn part(&self, server: usize, others: impl IntoIterator<Item = usize>) {
        self.conditions.send_modify(|conditions| {
            for other in others {
                conditions.held.insert((Party::Server(server), other));
                conditions.held.insert((Party::Server(other), server));
            }
        });
    }

    /// Holds everything between clients and a server.
    pub fn part_from_clients(&self, server: usize) {
        self.conditions.send_modify(|conditions| {
            conditions.held.insert((Party::Client, server));
        });
    }

    /// Passes everything again, including what was held.
    pub fn join(&self) {
        self.conditions.send_modify(|conditions| conditions.held.clear());
    }

    /// Closes the open connections of clients to a server.
    pub fn cut_clients(&self, server: usize) {
        self.conditions.send_modify(|conditions| *conditions.cuts.entry((Party::Client, server)).or_default() += 1);
    }

    /// Which of the servers' processes has the other end of a connection.
    fn who_connects(&self, from: SocketAddr, gate: SocketAddr) -> Party {
        let Some(socket) = socket_of(from, gate) else { return Party::Client };
        let processes = self.processes.lock().unwrap().clone();
        let server = processes.into_iter().find(|(_, process)| has_open(*process, &socket));
        server.map_or(Party::Client, |(number, _)| Party::Server(number))
    }
}

/// How `/proc` names the socket at the other end of a connection of this machine.
fn socket_of(from: SocketAddr, to: SocketAddr) -> Option<String> {
    let (from, to) = (kernel_address(from), kernel_address(to));
    let table = std::fs::read_to_string("/proc/self/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let is_this = fields.next() == Some(&from) && fields.next() == Some(&to);
        is_this.then(|| fields.nth(6).map(|inode| format!("socket:[{inode}]")))?
    })
}

/// An IPv4 address in the form of `/proc/net/tcp`.
fn kernel_address(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else { unreachable!("gates listen on IPv4") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

fn has_open(process: u32, socket: &str) -> bool {
    let files = std::fs::read_dir(format!("/proc/{process}/fd"));
    let mut files = files.into_iter().flatten().filter_map(Result::ok);
    files.any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == Path::new(socket)))
}
