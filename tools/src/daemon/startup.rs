//! Takes over from the previous daemon: looks for its processes and its state before anything is started.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use gaggled_actors::{
    clock::Clock,
    host::{self, ExitPipe, Recorder, SurvivingProcess, cgroup::Cgroup},
    journal::directory::{Origin, RecoveredState, StateDirectory, boot},
    spec,
};
use gaggled_core::{
    base::ids::{EpochId, ProgramId},
    config::Config,
    event::{Cause, Envelope, Event, SystemEvent},
    host::Recovered,
    journal::{
        Journal,
        recovery::{EpochStart, PreviousEpoch},
        segment::{FORMAT, SegmentHeader},
    },
    planning::plan::Plan,
    process::ExitStatus,
    state::State,
};

use super::{
    loaded_config::{Channels, LoadedConfig},
    subreaper_link::SubreaperLink,
};
use crate::VERSION;

/// What a daemon starts with.
pub(super) struct Startup<'a> {
    pub system: &'a LoadedConfig,
    pub directory: StateDirectory,
    /// Why the configured directory is not used, if it is not.
    pub fallback_directory_reason: Option<String>,
    pub recovered: RecoveredState,
    pub subreaper: Option<SubreaperLink>,
    /// None once they are in use.
    pub channels: Option<Channels>,
}

/// What has been taken over from the previous daemon.
pub(super) struct StartupState {
    pub head: SegmentHeader,
    /// The state before the first event of this daemon.
    pub state: State,
    pub committed: (Journal, Vec<Envelope>),
    pub recorder: Recorder,
    pub pipe: Option<ExitPipe>,
    pub survivors: Vec<SurvivingProcess>,
    /// The cgroups of runs that have ended and whose remaining processes are kept.
    pub kept: Vec<Cgroup>,
    pub reaped: Vec<(i32, ExitStatus)>,
    /// The configuration that was in force.
    pub before: Option<Config>,
    /// The directory in which cgroups are made.
    pub own_cgroups: Option<PathBuf>,
}

/// The processes that were found, and the records of those that have ended.
struct ProcessScan {
    found: Vec<(ProgramId, Recovered)>,
    survivors: Vec<SurvivingProcess>,
    kept: Vec<Cgroup>,
    reaped: Vec<(i32, ExitStatus)>,
    recorder: Recorder,
    pipe: Option<ExitPipe>,
}

impl Startup<'_> {
    /// Looks for what the previous daemon has left, and commits the resulting events.
    pub(super) fn take_over(&self, clock: Clock) -> Result<StartupState, String> {
        let Self { system, directory, fallback_directory_reason, recovered, .. } = self;
        let mut head = system.head(clock, recovered, directory);
        let last = recovered.last.as_ref().map(|(last, _)| last.config.clone());
        let before = last.and_then(|text| LoadedConfig::in_force(text, system.ignore_interrupts, directory.path()));
        let own = system.cgroups(&head.journal);
        if let Some(own) = &own {
            let prepared = spec::prepare_cgroups(&system.config, own);
            // A daemon that resumes goes on; starts that need a cgroup fail, with the reason.
            prepared.or_else(|why| if self.resumes() { Ok(()) } else { Err(why) })?;
        }
        // The cgroups that the head of a copy names are the original's.
        let of_before = recovered.last.as_ref().filter(|_| directory.origin != Origin::Copy);
        let of_before = of_before.map_or(&[][..], |(last, _)| &last.cgroups);
        // An earlier directory is removed when it is empty.
        let stays = |path: &PathBuf| fs::remove_dir(path).is_err_and(|error| error.kind() != io::ErrorKind::NotFound);
        let of_before = of_before.iter().filter(|path| own.as_ref() != Some(path) && stays(path));
        head.cgroups = own.iter().chain(of_before).cloned().collect();
        let epoch_start = system.epoch_start(clock, head.epoch, self);
        let state = epoch_start.state.clone();
        let files = spec::daemon_files(&system.config);
        let looked = self.look(&epoch_start, &head, &files, &head.cgroups).map_err(|error| error.to_string())?;
        let ProcessScan { found, survivors, kept, reaped, recorder, pipe } = looked;
        let changes = system.requested_changes(
            &state,
            (directory, recovered, self.resumes()),
            fallback_directory_reason.as_deref(),
            before.as_ref(),
        );
        let committed = epoch_start.commit(VERSION, found, changes);
        let before = before.map(|before| before.config);
        Ok(StartupState { head, state, committed, recorder, pipe, survivors, kept, reaped, before, own_cgroups: own })
    }

    /// Whether this daemon resumes the work of a previous one, and was not started by an operator.
    fn resumes(&self) -> bool {
        self.subreaper.as_ref().is_some_and(|subreaper| subreaper.before.is_some())
    }

    /// Looks for all processes that may still run. They are recognised by their tokens even if only the identity of the
    /// journal is left.
    fn look(
        &self,
        epoch_start: &EpochStart,
        head: &SegmentHeader,
        daemon_files: &BTreeMap<String, String>,
        cgroups: &[PathBuf],
    ) -> io::Result<ProcessScan> {
        let (recovered, subreaper) = (&self.recovered, self.subreaper.as_ref());
        let recorder = Recorder::new(subreaper.map(|subreaper| subreaper.recorder.try_clone()).transpose()?);
        let pipe = subreaper.map(|subreaper| subreaper.pipe.try_clone()).transpose()?;
        let mut pipe = pipe.map(ExitPipe::new).transpose()?;
        let mut reaped = Vec::new();
        let last = recovered.last.as_ref().filter(|(before, _)| before.boot == head.boot);
        let runs = last.and_then(|(before, _)| recorder.read(before.epoch));
        let state = last.map_or(&epoch_start.state, |(_, last)| last);
        let before = host::PreviousRun {
            state,
            identity: &head.journal,
            is_new: self.directory.origin == Origin::New,
            recorded: runs.as_deref(),
            daemon_files,
            is_subreaper_alive: self.resumes(),
            cgroups,
        };
        let host::ScanResult { found, survivors, kept } = host::look(&before, &epoch_start.state, || {
            reaped = pipe.as_mut().and_then(ExitPipe::look).unwrap_or_default();
            reaped.clone()
        });
        Ok(ProcessScan { found, survivors, kept, reaped, recorder, pipe })
    }
}

impl LoadedConfig {
    fn head(&self, clock: Clock, recovered: &RecoveredState, directory: &StateDirectory) -> SegmentHeader {
        let now = u64::try_from(clock.wall().0 / 1000).unwrap_or(1);
        let last = recovered.last.as_ref().map_or(0, |(head, _)| head.epoch.0);
        SegmentHeader {
            v: FORMAT,
            journal: directory.identity.clone(),
            boot: boot(),
            epoch: EpochId(now.max(last + 1)),
            config: self.text.clone(),
            lost_events: 0,
            cgroups: Vec::new(),
        }
    }

    fn epoch_start(&self, clock: Clock, epoch: EpochId, startup: &Startup<'_>) -> EpochStart {
        let Startup { recovered, directory, .. } = startup;
        let last = recovered.last.as_ref().map(|(head, state)| PreviousEpoch {
            state,
            // In another boot, or another time namespace, the clock has begun anew.
            same_boot: head.boot == boot() && state.at <= clock.now(),
            is_copy: directory.origin == Origin::Copy,
            resumes: startup.resumes(),
        });
        EpochStart::new(last, &self.config.graph(), epoch, clock.now(), clock.wall())
    }

    /// Events to commit besides those about processes: what a changed configuration wants, and problems of the journal.
    fn requested_changes(
        &self,
        state: &State,
        (directory, recovered, resumes): (&StateDirectory, &RecoveredState, bool),
        fallback_directory_reason: Option<&str>,
        before: Option<&Self>,
    ) -> Vec<(Event, Cause)> {
        let mut changes = Vec::new();
        for (file, why) in &recovered.damaged {
            let event = SystemEvent::JournalDamaged { file: file.clone(), reason: why.clone() };
            changes.push((Event::System(event), Cause::Kernel));
        }
        // It may have been created again, without anything written to it yet.
        if directory.origin == Origin::Lost || resumes && recovered.last.is_none() {
            let why = "it was removed while gaggled ran: programs are found by their tokens, but the history and the \
                       decisions of operators are lost";
            let file = directory.path().display().to_string();
            changes.push((Event::System(SystemEvent::JournalDamaged { file, reason: why.to_owned() }), Cause::Kernel));
        }
        if let Some(why) = fallback_directory_reason {
            let event = SystemEvent::JournalDegraded { reason: why.to_owned() };
            changes.push((Event::System(event), Cause::Kernel));
        }
        if let Some((head, last)) = &recovered.last
            && head.config.text != self.text.text
            && let Some(old) = before
        {
            let cause = last.handover.map_or(Cause::DaemonStart, |(_, seq)| Cause::Event(seq));
            changes.extend(Plan::new(&old.config, &self.config, last).wishes(state, &cause));
        }
        changes
    }
}
