//! The `health` verb's question: a small HTTP/1.1 `GET /healthz` of the program's own endpoint for
//! operators, so that a container's health check needs neither shell nor TLS nor gRPC.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long the answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// The longest answer that is read.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

/// What the program said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Whether it serves calls.
    pub serves: bool,
    /// Its words: JSON with `state` and `reason`.
    pub body: String,
}

/// The program could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing is configured to be asked.
    #[error("metrics.listen is off, so there is nothing to ask; set it, for example to 127.0.0.1:9400")]
    Off,
    /// The port is only known to the running program.
    #[error("metrics.listen has port 0; the port in use is in the log line `metrics listening`")]
    AnyPort,
    /// No answer in time.
    #[error("no answer from {0} within {TIMEOUT:?}")]
    Timeout(SocketAddr),
    /// The connection failed.
    #[error("cannot ask {addr}: {source}; is the program running?")]
    Io {
        /// Who was asked.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something else answered.
    #[error("{0} does not answer like a program of this kind; is another program listening there?")]
    Foreign(SocketAddr),
}

/// Asks the program whose `metrics.listen` is `listen`.
pub async fn check(listen: Option<SocketAddr>) -> Result<Health, ProbeError> {
    let addr = reachable(listen.ok_or(ProbeError::Off)?);
    if addr.port() == 0 {
        return Err(ProbeError::AnyPort);
    }
    let answer = tokio::time::timeout(TIMEOUT, ask(addr)).await.map_err(|_| ProbeError::Timeout(addr))?;
    let answer = answer.map_err(|source| ProbeError::Io { addr, source })?;
    parse(&answer).ok_or(ProbeError::Foreign(addr))
}

/// Who listens everywhere is asked on loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

async fn ask(addr: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr).await?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

fn parse(answer: &[u8]) -> Option<Health> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let code = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?;
    let serves = match code {
        "200" => true,
        "503" => false,
        _ => return None,
    };
    Some(Health { serves, body: body.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood_and_strangers_are_not() {
        let answer = parse(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}");
        assert_eq!(answer, Some(Health { serves: false, body: "{}".into() }));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").unwrap().serves);
        assert_eq!(parse(b"HTTP/1.1 404 Not Found\r\n\r\n"), None);
        assert_eq!(parse(b"SSH-2.0-x\r\n"), None);
    }

    #[test]
    fn who_listens_everywhere_is_asked_on_loopback() {
        assert_eq!(reachable("0.0.0.0:9400".parse().unwrap()), "127.0.0.1:9400".parse().unwrap());
        assert_eq!(reachable("[::]:9400".parse().unwrap()), "[::1]:9400".parse().unwrap());
    }
}
