//! The demonstration itself: the life of volumes, with a crash and a restart of the machine in the middle.

use super::report::milliseconds;
use super::session::Session;
use super::step::Step;
use crate::cli::Failure;

const BIRTH_AND_GROWTH: [Step; 9] = [
    Step::Create,
    Step::Stage,
    Step::Publish,
    Step::Write,
    Step::Stats,
    Step::Fill,
    Step::ControllerExpand,
    Step::NodeExpand,
    Step::WriteMore,
];
const AFTER_RESTART: [Step; 3] = [Step::StageAgain, Step::PublishAgain, Step::ReadBack];
const COPIES: [Step; 4] = [Step::WriteAfter, Step::Restore, Step::ReadRestored, Step::EndCopies];
const READERS_AND_END: [Step; 5] =
    [Step::PublishReader, Step::RefuseWrites, Step::Unpublish, Step::Unstage, Step::Delete];

/// Runs it to the end; what it leaves on a failure is for [`Session::clean_up`].
pub(super) async fn run(session: &mut Session) -> Result<(), Failure> {
    let ready = milliseconds(session.start().await?);
    session.note_pool();
    session.report.note(format!("first start: ready after {ready} ms"));
    session.all(&BIRTH_AND_GROWTH).await?;
    session.note_taken();
    session.note_limits();

    session.kill()?;
    session.all(&[Step::ReadWithoutDriver]).await?;
    let ready = milliseconds(session.start().await?);
    session.report.note(format!(
        "killed (SIGKILL) with all volumes in use, started again: ready after {ready} ms"
    ));
    session.all(&[Step::Repeat]).await?;

    // What a restart of the machine leaves: the pool's files, and kubelet's directories.
    session.kill()?;
    session.release().await?;
    let ready = milliseconds(session.start().await?);
    session.note_reboot(&ready);
    session.all(&[Step::Snapshot]).await?;
    session.all(&AFTER_RESTART).await?;
    session.all(&COPIES).await?;
    session.all(&READERS_AND_END).await?;
    session.stop().await
}
