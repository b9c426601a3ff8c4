package taskqueue

import (
	"context"
	"time"

	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"github.com/googleapis/gax-go/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/coditect/platform/shared/fault"
)

var reconnect = backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}

// EnsureQueues creates the queues in an emulator: so many steps at a time, and receiversAtOnce receivers; a failed
// delivery is tried again after 0.1 s, then 0.2 s … up to 5 s. In production Terraform owns the queues, with the same
// figures.
//
// An emulator that was restarted has lost its queues: call it again.
func (q *Queue) EnsureQueues(ctx context.Context, steps int32) error {
	if q.cfg.Emulator == "" {
		return fault.New(fault.Internal, "queue_not_ours", "queues of the real service are made by Terraform, not by the program")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := q.ensure(ctx, q.cfg.Queue, steps); err != nil {
		return err
	}
	return q.ensure(ctx, q.cfg.ReceiveQueue, receiversAtOnce)
}

// receiversAtOnce is more than there are lanes: each has a receiver and the next one, which waits for it.
const receiversAtOnce = 100

func (q *Queue) ensure(ctx context.Context, name string, maxConcurrent int32) error {
	_, err := q.client.CreateQueue(ctx, &cloudtaskspb.CreateQueueRequest{
		Parent: queueName.FindStringSubmatch(name)[1],
		Queue: &cloudtaskspb.Queue{
			Name: name,
			RateLimits: &cloudtaskspb.RateLimits{
				MaxDispatchesPerSecond:  500, // below 1 the emulator panics
				MaxConcurrentDispatches: maxConcurrent,
			},
			RetryConfig: &cloudtaskspb.RetryConfig{
				MaxAttempts:  1_000_000, // -1 would mean "never retry" to the emulator
				MinBackoff:   durationpb.New(100 * time.Millisecond),
				MaxBackoff:   durationpb.New(5 * time.Second),
				MaxDoublings: 6,
			},
		},
	}, gax.WithGRPCOptions(grpc.WaitForReady(true))) // the emulator may be starting
	switch status.Code(err) {
	case codes.OK, codes.AlreadyExists:
		return nil
	default:
		return fault.Wrap(err, fault.Unavailable, "queue_unavailable", "the task queue %s could not be created", name)
	}
}
