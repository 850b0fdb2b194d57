//! A proxy in front of a server that remembers what went through, and has faults on demand.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does with connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Passes everything on.
    None,
    /// Closes each at once, those that are open too.
    Closed,
    /// Takes requests and never answers.
    Silent,
    /// Passes a byte of each answer every now and then.
    Slow,
    /// Closes each after the first bytes of an answer's body.
    Cut,
    /// Answers each request itself, with this.
    Answer(String),
}

/// What went through.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The first line of each request.
    pub(crate) requests: Vec<String>,
    /// The status of each answer.
    pub(crate) statuses: Vec<u16>,
}

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    fault: Arc<watch::Sender<Fault>>,
    seen: Arc<Mutex<Seen>>,
}

impl Proxy {
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        let listener = listener.expect("a port");
        let proxy = Self {
            address: listener.local_addr().expect("bound"),
            fault: Arc::new(watch::Sender::new(Fault::None)),
            seen: Arc::default(),
        };
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let serving = serving.clone();
                tokio::spawn(async move { serving.connection(client, server).await });
            }
        });
        proxy
    }

    pub(crate) fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// What went through since this was last called.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().expect("unpoisoned"))
    }

    async fn connection(self, client: TcpStream, server: SocketAddr) {
        let mut fault = self.fault.subscribe();
        if *fault.borrow() == Fault::Closed {
            return;
        }
        let (from_client, to_client) = client.into_split();
        let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
        let answers_itself = matches!(*fault.borrow(), Fault::Answer(_));
        if answers_itself {
            // There may be no server.
            return self.requests(from_client, None, to_client).await;
        }
        let Ok(server) = TcpStream::connect(server).await else {
            return;
        };
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = self.requests(from_client, Some(to_server), to_client.clone()) => {}
            () = self.answers(from_server, to_client) => {}
            _ = fault.wait_for(|fault| *fault == Fault::Closed) => {}
        }
    }

    async fn requests(
        &self,
        mut from: OwnedReadHalf,
        mut to: Option<OwnedWriteHalf>,
        back: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    ) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(size @ 1..) = from.read(&mut buffer).await {
            let text = String::from_utf8_lossy(&buffer[..size]);
            let line = text.lines().next().unwrap_or_default();
            if line.ends_with("HTTP/1.1") {
                let mut seen = self.seen.lock().expect("unpoisoned");
                seen.requests.push(line.to_owned());
            }
            let fault = self.fault.borrow().clone();
            let sent = match (fault, &mut to) {
                (Fault::Answer(answer), _) => back.lock().await.write_all(answer.as_bytes()).await,
                (Fault::Silent, _) | (_, None) => Ok(()),
                (_, Some(to)) => to.write_all(&buffer[..size]).await,
            };
            if sent.is_err() {
                return;
            }
        }
    }

    async fn answers(&self, mut from: OwnedReadHalf, to: Arc<tokio::sync::Mutex<OwnedWriteHalf>>) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(size @ 1..) = from.read(&mut buffer).await {
            let part = &buffer[..size];
            if let Some(rest) = part.strip_prefix(b"HTTP/1.1 ") {
                let status = std::str::from_utf8(&rest[..3]).expect("digits");
                let mut seen = self.seen.lock().expect("unpoisoned");
                seen.statuses.push(status.parse().expect("a number"));
            }
            let fault = self.fault.borrow().clone();
            let mut to = to.lock().await;
            let sent = match fault {
                Fault::Slow => slowly(&mut to, part).await,
                Fault::Cut => return cut(from_here(part, &mut from).await, &mut to).await,
                _ => to.write_all(part).await,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

async fn slowly(to: &mut OwnedWriteHalf, part: &[u8]) -> std::io::Result<()> {
    for byte in part {
        to.write_all(&[*byte]).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// The answer so far, with at least some of its body.
async fn from_here(part: &[u8], from: &mut OwnedReadHalf) -> Vec<u8> {
    let mut answer = part.to_vec();
    while body(&answer).is_none_or(|start| answer.len() < start + 2) {
        match from.read_buf(&mut answer).await {
            Ok(1..) => {}
            _ => break,
        }
    }
    answer
}

fn body(answer: &[u8]) -> Option<usize> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

async fn cut(answer: Vec<u8>, to: &mut OwnedWriteHalf) {
    let start = body(&answer).unwrap_or(answer.len());
    let end = answer.len().min(start + 2);
    let _ = to.write_all(&answer[..end]).await;
}
