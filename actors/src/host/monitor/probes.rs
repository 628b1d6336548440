//! The three kinds of probes.

use std::{io, time::Duration};

use gaggled_core::{
    base::ids::{InstanceId, ProgramId},
    host::probe::ProbeError,
};
use tokio::{net::TcpStream, sync::oneshot, task, time};

use crate::host::{messages::SpawnRequest, track::tracker::ProcessTracker};

type Answer = Result<(), ProbeError>;

/// Whether a connection is accepted.
pub(crate) async fn tcp(address: &str, timeout: Duration) -> Answer {
    match time::timeout(timeout, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(probe_error(&error)),
        Err(_) => Err(ProbeError::Timeout),
    }
}

/// Whether a request is answered with a status from 200 to 399.
pub(crate) async fn http(url: String, timeout: Duration) -> Answer {
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
        Ok(Ok(status)) => Err(ProbeError::HttpStatus(status)),
        Ok(Err(ureq::Error::Timeout(_))) => Err(ProbeError::Timeout),
        Ok(Err(ureq::Error::Io(error))) => Err(probe_error(&error)),
        Ok(Err(ureq::Error::HostNotFound)) => Err(ProbeError::DnsFailure),
        Ok(Err(ureq::Error::Rustls(_) | ureq::Error::Tls(_))) => Err(ProbeError::Tls),
        Ok(Err(ureq::Error::ConnectionFailed)) => Err(ProbeError::Os(libc::ECONNREFUSED)),
        Ok(Err(_)) | Err(_) => Err(ProbeError::InvalidResponse),
    }
}

/// Whether a command succeeds. One that takes too long is killed, with everything that it has started.
pub(crate) async fn command(
    shared: &ProcessTracker,
    program: ProgramId,
    instance: InstanceId,
    line: String,
    timeout: Duration,
) -> Answer {
    let (answer, mut status) = oneshot::channel();
    shared.order(SpawnRequest::Check { program, instance, line, answer });
    let ended = time::timeout(timeout, &mut status).await;
    if ended.is_err() {
        // A probe that was not started yet is not started once its channel is closed.
        status.close();
        shared.end_check(program);
        return Err(ProbeError::Timeout);
    }
    match ended {
        Ok(Ok(status)) if status.is_success() => Ok(()),
        Ok(Ok(status)) => Err(ProbeError::ExitStatus(status)),
        Ok(Err(_)) | Err(_) => Err(ProbeError::Os(libc::EAGAIN)),
    }
}

fn probe_error(error: &io::Error) -> ProbeError {
    match (error.raw_os_error(), error.kind()) {
        (Some(errno), _) => ProbeError::Os(errno),
        (None, io::ErrorKind::TimedOut) => ProbeError::Timeout,
        // Errors of system calls have a number; one without it comes from name resolution or TLS.
        (None, io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => ProbeError::Tls,
        (None, _) => ProbeError::DnsFailure,
    }
}
