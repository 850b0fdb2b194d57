//! A template server that never gives what it is asked for.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// How much is sent at once of an answer without an end.
const CHUNK_BYTES: usize = 64 << 10;
/// The pause between two bytes of an answer that is slow.
const DRIP_PAUSE: Duration = Duration::from_millis(100);

/// The server; it stops when dropped.
pub(super) struct TemplateServer {
    pub(super) url: String,
    task: JoinHandle<()>,
}

impl TemplateServer {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = Arc::new(format!("http://{}", listener.local_addr()?));
        let own = url.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let own = own.clone();
                // What goes wrong with one connection is its client's matter.
                tokio::spawn(async move { answer(stream, &own).await.ok() });
            }
        });
        let url = url.to_string();
        Ok(Self { url, task })
    }
}

impl Drop for TemplateServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers as the first part of the path says; the second part is a number.
async fn answer(mut stream: TcpStream, url: &str) -> std::io::Result<()> {
    let mut request = vec![0; 8 << 10];
    let read = stream.read(&mut request).await?;
    let request = String::from_utf8_lossy(&request[..read]).into_owned();
    let path = request.split(' ').nth(1).unwrap_or_default();
    let mut parts = path.trim_start_matches('/').split('/');
    let way = parts.next().unwrap_or_default();
    let number: usize = parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let head = match way {
        "hang" => std::future::pending().await,
        "closed" => return Ok(()),
        "redirect" => format!(
            "302 Found\r\nLocation: {url}/redirect/{}\r\nContent-Length: 0",
            number + 1
        ),
        "error" => format!("{} Odd\r\nContent-Length: 0", 400 + number % 200),
        "wait" => format!("503 Busy\r\nRetry-After: {number}\r\nContent-Length: 0"),
        "garbage" => "200 OK\r\nContent-Length: 4\r\n\r\n\0\u{1}[{".to_owned(),
        _ => "200 OK".to_owned(),
    };
    let head = format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    match way {
        "drip" => loop {
            stream.write_all(b" ").await?;
            tokio::time::sleep(DRIP_PAUSE).await;
        },
        "huge" => loop {
            stream.write_all(&[b'x'; CHUNK_BYTES]).await?;
        },
        _ => Ok(()),
    }
}
