package events

import (
	"context"
	"fmt"
	"sync"
	"time"

	"cloud.google.com/go/pubsub/v2"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// Config is read from the environment by go-envconfig.
type Config struct {
	Project string `env:"CODITECT_PUBSUB_PROJECT,default=dev"`
	// Emulator is host:port of an emulator, spoken to in plain text; the variable
	// is the one Google's own clients read.
	Emulator string `env:"PUBSUB_EMULATOR_HOST"`
}

// PubSub is the Publisher on Google Cloud Pub/Sub. It is safe for concurrent use.
type PubSub struct {
	client *pubsub.Client

	mu     sync.Mutex
	topics map[string]*pubsub.Publisher
}

var _ Publisher = (*PubSub)(nil)

// Open returns a publisher. It makes no round trip.
func Open(ctx context.Context, cfg Config) (*PubSub, error) {
	var opts []option.ClientOption
	if cfg.Emulator != "" {
		opts = append(opts, option.WithEndpoint(cfg.Emulator), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	}
	client, err := pubsub.NewClient(ctx, cfg.Project, opts...)
	if err != nil {
		return nil, fmt.Errorf("events: open Pub/Sub: %w", err)
	}
	return &PubSub{client: client, topics: map[string]*pubsub.Publisher{}}, nil
}

// Publish implements Publisher.
func (p *PubSub) Publish(ctx context.Context, messages []Message) []error {
	results := make([]*pubsub.PublishResult, len(messages))
	for i, m := range messages {
		results[i] = p.topic(m.Topic).Publish(ctx, &pubsub.Message{Data: m.Data, Attributes: m.Attributes, OrderingKey: m.OrderingKey})
	}
	errs := make([]error, len(messages))
	for i, r := range results {
		_, errs[i] = r.Get(ctx)
	}
	// After a failure the client refuses the key until told otherwise. What is
	// behind it has been refused by now and stays in the outbox, so order holds.
	for i, err := range errs {
		if err != nil && messages[i].OrderingKey != "" {
			p.topic(messages[i].Topic).ResumePublish(messages[i].OrderingKey)
		}
	}
	return errs
}

// EnsureTopic creates a topic in an emulator; in production Terraform does.
func (p *PubSub) EnsureTopic(ctx context.Context, topic string) error {
	name := fmt.Sprintf("projects/%s/topics/%s", p.client.Project(), topic)
	_, err := p.client.TopicAdminClient.CreateTopic(ctx, &pubsubpb.Topic{Name: name})
	if status.Code(err) == codes.AlreadyExists {
		return nil
	}
	if err != nil {
		return fmt.Errorf("events: create topic %s: %w", topic, err)
	}
	return nil
}

// Close sends what is under way and closes the connection.
func (p *PubSub) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.topics {
		t.Stop()
	}
	return p.client.Close()
}

func (p *PubSub) topic(name string) *pubsub.Publisher {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.topics[name]
	if t == nil {
		t = p.client.Publisher(name)
		t.EnableMessageOrdering = true
		// The relay hands over whole batches: waiting for more would only add delay.
		t.PublishSettings.DelayThreshold = time.Millisecond
		t.PublishSettings.Timeout = publishPatience
		p.topics[name] = t
	}
	return t
}
