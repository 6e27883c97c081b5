//! What an operator asks of a running driver.

use orlop::csi::proto::operator::operator_client::OperatorClient;
use orlop::csi::proto::operator::{DeleteVolumeRequest, DeleteVolumeResponse};
use tonic::{Code, Status};

use super::driver::{Driver, HOSTPATH, KINDS, refused, text};

async fn delete(driver: &Driver, id: &str) -> Result<DeleteVolumeResponse, Status> {
    let request = DeleteVolumeRequest { volume_id: id.to_owned() };
    let mut client = OperatorClient::new(driver.channel.clone());
    client.delete_volume(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_not_deleted_while_it_is_in_use() {
    let driver = Driver::start().await;
    let [staging, target] = ["staging", "target"].map(|name| driver.machine.path(name));
    for kind in KINDS {
        let id = driver.make(kind, "v").await;
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.publish(&id, (&staging, &target), kind.shared(), false).await.unwrap();
        assert_eq!(refused("published", delete(&driver, &id).await), Code::FailedPrecondition);
        driver.unpublish(&id, &target).await.unwrap();
        assert_eq!(refused("staged", delete(&driver, &id).await), Code::FailedPrecondition);
        driver.unstage(&id, &staging).await.unwrap();
        let deleted = delete(&driver, &id).await.unwrap();
        assert_eq!((deleted.name.as_str(), deleted.kept.as_str()), ("v", ""));
        assert_eq!(refused("deleted", delete(&driver, &id).await), Code::NotFound);
        driver.get(&id).await.unwrap_err();
    }
    assert_eq!(refused("no id", delete(&driver, "").await), Code::InvalidArgument);
    assert_eq!(refused("another's", delete(&driver, "pvc-1").await), Code::NotFound);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_on_delete_keeps_is_told() {
    let driver = Driver::start().await;
    for (word, directory) in [("retain", "retained"), ("archive", "archive")] {
        let mut request = HOSTPATH.create(word);
        request.parameters.insert("onDelete".to_owned(), word.to_owned());
        let id = driver.create(request).await.unwrap().volume_id;
        let deleted = delete(&driver, &id).await.unwrap();
        assert_eq!(deleted.on_delete, word);
        let kept = driver.machine.names("default", directory).remove(0);
        let kept = driver.machine.pool("default").join(directory).join(kept);
        assert_eq!(deleted.kept, text(&kept));
    }
    driver.stop().await;
}
