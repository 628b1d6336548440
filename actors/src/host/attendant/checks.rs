//! The three ways to ask a program how it is.

use std::{io, time::Duration};

use gaggled_core::{
    health::Complaint,
    ids::{InstanceId, ProgramId},
};
use tokio::{net::TcpStream, sync::oneshot, task, time};

use crate::host::{shared::Shared, starter::Order};

type Answer = Result<(), Complaint>;

/// Whether a connection is accepted.
pub(super) async fn tcp(address: &str, timeout: Duration) -> Answer {
    match time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(complaint(&error)),
        Err(_) => Err(Complaint::Late),
    }
}

/// Whether a request is answered with a status from 200 to 399.
pub(super) async fn http(url: String, timeout: Duration) -> Answer {
    let ask = move || {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build()
            .new_agent();
        agent.get(&url).call().map(|response| response.status().as_u16())
    };
    match task::spawn_blocking(ask).await {
        Ok(Ok(200..=399)) => Ok(()),
        Ok(Ok(status)) => Err(Complaint::Http(status)),
        Ok(Err(ureq::Error::Timeout(_))) => Err(Complaint::Late),
        Ok(Err(ureq::Error::Io(error))) => Err(complaint(&error)),
        Ok(Err(ureq::Error::HostNotFound)) => Err(Complaint::NoHost),
        Ok(Err(ureq::Error::Rustls(_) | ureq::Error::Tls(_))) => Err(Complaint::Tls),
        Ok(Err(ureq::Error::ConnectionFailed)) => Err(Complaint::Error(libc::ECONNREFUSED)),
        Ok(Err(_)) | Err(_) => Err(Complaint::Garbled),
    }
}

/// Whether a command succeeds. One that takes too long is killed, with everything that it has started.
pub(super) async fn command(
    shared: &Shared,
    program: ProgramId,
    instance: InstanceId,
    line: String,
    timeout: Duration,
) -> Answer {
    let (answer, mut status) = oneshot::channel();
    shared.order(Order::Check { program, instance, line, answer });
    let ended = time::timeout(timeout, &mut status).await;
    if ended.is_err() {
        // One that is only about to be started is not, when nobody waits for it any more.
        status.close();
        shared.end_check(program);
        return Err(Complaint::Late);
    }
    match ended {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(Complaint::Command(status)),
        Ok(Err(_)) | Err(_) => Err(Complaint::Error(libc::EAGAIN)),
    }
}

fn complaint(error: &io::Error) -> Complaint {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => Complaint::Error(errno),
        (None, io::ErrorKind::TimedOut) => Complaint::Late,
        // Everything else that the system says has a number; what has none was a name that is not known, or TLS.
        (None, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => Complaint::Tls,
        (None, _) => Complaint::NoHost,
    }
}
