"""What EC2's structures have and imgstore's answers have not, and why.

With these and what the answers have, every member of every structure must be accounted for, none of them twice: a
member that EC2 gains, or one that imgstore gains or loses, belongs here or in fields.py.
"""

ENCRYPTION = "imgstore does not encrypt"
ZONES = "a region has no zones, outposts or ARNs"
PERFORMANCE = "disks are files: nothing provides or limits performance"
NETWORK = "no network belongs to an instance"
HARDWARE = "imgstore keeps disks; whoever runs the machine chooses its hardware"
BILLING = "nothing is billed, rented or reserved"
SERVICES = "made by AWS services that imgstore has no counterpart of"
ONE_STATE = "imgstore's steps happen at once, so that there is nothing to explain"
MANAGED = "of resources that AWS services manage for a customer"

ABSENT: dict[str, dict[str, str]] = {
    "DescribeImagesResult": {},
    "DescribeSnapshotsResult": {},
    "DescribeVolumesResult": {},
    "DescribeInstancesResult": {},
    "Tag": {},
    "ProductCode": {},
    "InstanceState": {},
    "Image": {
        BILLING: "PlatformDetails UsageOperation FreeTierEligible",
        HARDWARE: "Hypervisor SriovNetSupport InstanceTypeSpecification",
        ONE_STATE: "StateReason",
        SERVICES: "ImageAllowed PublicSsmParameterName ImageWatermarks ScanResults",
        "imgstore does not count launches": "LastLaunchedTime",
    },
    "BlockDeviceMapping": {
        "a device that is left out is not in the mapping": "NoDevice",
    },
    "EbsBlockDevice": {
        ENCRYPTION: "KmsKeyId",
        ZONES: "OutpostArn AvailabilityZone AvailabilityZoneId",
        PERFORMANCE: "Throughput VolumeInitializationRate EbsCardIndex",
    },
    "Snapshot": {
        ENCRYPTION: "KmsKeyId DataEncryptionKeyId AssociatedKmsKeys SseType",
        ZONES: "OutpostArn AvailabilityZone",
        ONE_STATE: "StateMessage CompletionTime",
        "there is one tier": "StorageTier RestoreExpiryTime",
        "a copy is made at once, or goes on when it is asked for again": "TransferType CompletionDurationMinutes",
    },
    "Volume": {
        ENCRYPTION: "KmsKeyId SseType",
        ZONES: "OutpostArn AvailabilityZone AvailabilityZoneId VolumeArn",
        PERFORMANCE: "Throughput VolumeInitializationRate FastRestored",
        MANAGED: "Operator",
        "a volume is attached to one instance at most": "MultiAttachEnabled",
        "volumes are not copied, but made of snapshots": "SourceVolumeId",
    },
    "VolumeAttachment": {
        PERFORMANCE: "EbsCardIndex",
        MANAGED: "AssociatedResource InstanceOwningService",
    },
    "Reservation": {
        NETWORK: "Groups",
        MANAGED: "RequesterId",
    },
    "Instance": {
        NETWORK: (
            "NetworkInterfaces SecondaryInterfaces SecurityGroups SourceDestCheck PrivateDnsName PublicDnsName "
            "PrivateDnsNameOptions Ipv6Address PrivateIpAddress PublicIpAddress SubnetId VpcId "
            "NetworkPerformanceOptions"
        ),
        HARDWARE: (
            "InstanceType CpuOptions Hypervisor EbsOptimized SriovNetSupport ElasticGpuAssociations "
            "ElasticInferenceAcceleratorAssociations EnclaveOptions HibernationOptions CurrentInstanceBootMode"
        ),
        BILLING: (
            "PlatformDetails UsageOperation UsageOperationUpdateTime Licenses InstanceLifecycle "
            "SpotInstanceRequestId CapacityBlockId CapacityReservationId CapacityReservationSpecification"
        ),
        ZONES: "OutpostArn Placement",
        SERVICES: "IamInstanceProfile KeyName MetadataOptions Monitoring MaintenanceOptions",
        MANAGED: "Operator",
        "StateTransitionReason says it": "StateReason",
    },
    "InstanceBlockDeviceMapping": {},
    "EbsInstanceBlockDevice": {
        PERFORMANCE: "EbsCardIndex",
        MANAGED: "AssociatedResource VolumeOwnerId Operator",
    },
}
