//! The life of an identity: join, renew at half life, keep what is valid, restore what was kept on disk.

use std::sync::Arc;

use tokio::sync::watch;
use weft_identity::{
    WallClock,
    csr::KeyPair,
    rotate::{self, Now, State, Step},
};
use weft_rt::{Clock, Dice, net::Net};
use weft_wire::{grpc::WorkloadApiClient, v1::RenewRequest};

use super::{
    connect::Dialer,
    join::{self, Claim, JoinError, Proof},
    kept::Kept,
};
use crate::tls::Credentials;

/// Keeps one workload's credentials current, for ever.
pub struct Identity {
    pub net: Arc<dyn Net>,
    pub proof: Proof,
    pub claim: Claim,
    pub clock: Clock,
    pub dice: Dice,
    /// Where credentials survive a restart.
    pub kept: Option<Kept>,
    pub published: watch::Sender<Option<Arc<Credentials>>>,
}

impl Identity {
    /// Returns when there are credentials: restored ones, or those of a successful join. Tells `waiting` each time that
    /// an attempt failed but may yet succeed.
    pub async fn first(&mut self, mut waiting: impl FnMut(&JoinError)) -> Result<State, JoinError> {
        if let Some(restored) = self.restored() {
            return Ok(restored);
        }
        let wall = wall_clock(&self.clock);
        let key = KeyPair::generate().map_err(|e| JoinError::Key(e.to_string()))?;
        let mut state = State::NONE;
        loop {
            match join::join(&self.net, &self.proof, &self.claim, &key, &wall).await {
                Ok(credentials) => return Ok(self.obtained(&state, credentials)),
                Err(e) if e.is_final() => return Err(e),
                Err(e) => {
                    waiting(&e);
                    state = state.failed(self.now(), self.dice.next_u64());
                }
            }
            self.wait_for_turn(&state).await;
        }
    }

    /// Renews over a channel of the current SVID whenever the plan says so. Never returns.
    pub async fn renew(mut self, mut state: State, dialer: Dialer) {
        let mut before = self.now();
        loop {
            let now = self.now();
            if let Some(ms) = rotate::clock_step(before, now) {
                tracing::warn!(step_ms = ms, "the wall clock was stepped: renewal planned anew");
            }
            before = now;
            match rotate::plan(now, &state) {
                Step::Wait(for_) => tokio::time::sleep(for_).await,
                Step::Expired { retry_in } if !retry_in.is_zero() => {
                    tracing::error!(
                        "the identity of this workload has expired: its connections are refused until the control plane answers"
                    );
                    tokio::time::sleep(retry_in.min(rotate::RECHECK)).await;
                }
                Step::Renew | Step::Expired { .. } => match renewed(&dialer).await {
                    Ok(credentials) => {
                        tracing::info!(serial = %credentials.svid.serial(), not_after = %credentials.svid.not_after(), "identity renewed");
                        state = self.obtained(&state, credentials);
                    }
                    Err(why) => {
                        tracing::warn!(why, "identity not renewed: the current one stays in use");
                        state = state.failed(self.now(), self.dice.next_u64());
                    }
                },
            }
        }
    }

    fn restored(&mut self) -> Option<State> {
        let credentials = self.kept.as_ref()?.credentials(self.clock.wall())?;
        let (from, to) = (credentials.svid.not_before(), credentials.svid.not_after());
        self.published.send_replace(Some(Arc::new(credentials)));
        Some(State::restored(from, to, self.dice.next_u64()))
    }

    fn obtained(&mut self, state: &State, credentials: Credentials) -> State {
        let (from, to) = (credentials.svid.not_before(), credentials.svid.not_after());
        if let Some(Err(e)) = self.kept.as_ref().map(|k| k.keep_credentials(&credentials)) {
            tracing::warn!(error = %weft_rt::log::chain(&e), "identity cannot be kept on disk: a restart will need the control plane");
        }
        self.published.send_replace(Some(Arc::new(credentials)));
        state.obtained(from, to, self.now(), self.dice.next_u64())
    }

    async fn wait_for_turn(&self, state: &State) {
        loop {
            match rotate::plan(self.now(), state) {
                Step::Wait(for_) => tokio::time::sleep(for_).await,
                _ => return,
            }
        }
    }

    fn now(&self) -> Now {
        Now { wall: self.clock.wall(), mono: self.clock.mono() }
    }
}

/// An authority that has not answered within this is asked again.
pub const ANSWER: std::time::Duration = std::time::Duration::from_secs(10);

/// One renewal with a new key.
async fn renewed(dialer: &Dialer) -> Result<Credentials, String> {
    let key = KeyPair::generate().map_err(|e| e.to_string())?;
    let csr_der = key.csr().map_err(|e| e.to_string())?;
    let mut client = WorkloadApiClient::new(dialer.channel().map_err(|s| s.message().to_owned())?);
    let renewal = client.renew(RenewRequest { csr_der: csr_der.into() });
    let issued =
        tokio::time::timeout(ANSWER, renewal).await.map_err(|_| "the control plane took too long".to_owned())?;
    let issued = issued.map_err(|status| match std::error::Error::source(&status) {
        Some(source) => weft_rt::log::chain(source).to_string(),
        None => status.message().to_owned(),
    })?;
    join::credentials(&key, issued.into_inner())
}

pub fn wall_clock(clock: &Clock) -> WallClock {
    let clock = clock.clone();
    WallClock::new(move || clock.wall())
}
