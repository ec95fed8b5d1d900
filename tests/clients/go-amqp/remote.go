// go-amqp on strings: each line of standard input is a step, each line printed its answer.
//
// The steps are described in tests/clients/README.md.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	amqp "github.com/Azure/go-amqp"
)

// step is what a test asks.
type step struct {
	Do          string  `json:"do"`
	Name        string  `json:"name"`
	WithinMs    int     `json:"within_ms"`
	Port        int     `json:"port"`
	TLSCa       string  `json:"tls_ca"`
	IdleMs      int     `json:"idle_ms"`
	Failover    []int   `json:"failover"`
	To          string  `json:"to"`
	From        string  `json:"from"`
	Credit      int     `json:"credit"`
	Copy        bool    `json:"copy"`
	Dynamic     bool    `json:"dynamic"`
	Text        *string `json:"text"`
	Body        string  `json:"body"`
	Durable     bool    `json:"durable"`
	ReplyTo     *string `json:"reply_to"`
	Correlation *string `json:"correlation"`
	Count       int     `json:"count"`
	Delivery    string  `json:"delivery"`
	Outcome     string  `json:"outcome"`
	Ms          int     `json:"ms"`
}

type answer map[string]any

// delivery is a message with the receiver that can settle it.
type delivery struct {
	receiver *amqp.Receiver
	message  *amqp.Message
}

type remote struct {
	conn       *amqp.Conn
	session    *amqp.Session
	senders    map[string]*amqp.Sender
	receivers  map[string]*amqp.Receiver
	deliveries map[string]delivery
}

func main() {
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	client := &remote{}
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		asked := step{WithinMs: 10_000}
		said, err := answer(nil), json.Unmarshal(line, &asked)
		if err == nil {
			said, err = client.answer(asked)
		}
		if err != nil {
			said = answer{"error": refusal(err)}
		}
		if err := json.NewEncoder(out).Encode(said); err != nil {
			panic(err)
		}
		out.Flush()
	}
}

func refusal(err error) answer {
	condition := "none"
	var told *amqp.Error
	if errors.As(err, &told) {
		condition = string(told.Condition)
	}
	return answer{"condition": condition, "description": err.Error()}
}

func (r *remote) answer(s step) (answer, error) {
	ctx, done := context.WithTimeout(context.Background(), time.Duration(s.WithinMs)*time.Millisecond)
	defer done()
	switch s.Do {
	case "about":
		return answer{"version": version()}, nil
	case "connect":
		return r.connect(ctx, s)
	case "sender":
		sender, err := r.session.NewSender(ctx, s.To, nil)
		if err != nil {
			return nil, err
		}
		r.senders[s.Name] = sender
		return answer{"address": sender.Address()}, nil
	case "receiver":
		return r.receive(ctx, s)
	case "send":
		return r.send(ctx, s)
	case "take":
		return r.take(ctx, s)
	case "settle":
		return answer{}, r.settle(ctx, s)
	case "drain":
		return r.drain(ctx, s)
	case "detach":
		if sender, is := r.senders[s.Name]; is {
			delete(r.senders, s.Name)
			return answer{"answered": true}, sender.Close(ctx)
		}
		receiver := r.receivers[s.Name]
		delete(r.receivers, s.Name)
		return answer{"answered": true}, receiver.Close(ctx)
	case "close":
		return answer{"answered": true}, r.close()
	case "idle":
		select {
		case <-r.conn.Done():
			return answer{"open": false}, nil
		case <-time.After(time.Duration(s.Ms) * time.Millisecond):
			return answer{"open": true}, nil
		}
	}
	return nil, fmt.Errorf("no such step: %s", s.Do)
}

func version() string {
	info, _ := debug.ReadBuildInfo()
	for _, module := range info.Deps {
		if module.Path == "github.com/Azure/go-amqp" {
			return module.Version[1:]
		}
	}
	return "unknown"
}

func (r *remote) connect(ctx context.Context, s step) (answer, error) {
	if s.Failover != nil {
		const why = "go-amqp connects once; the program makes connection, session and links anew"
		return answer{"lacks": why}, nil
	}
	// A connection that is gone can't be closed in order.
	_ = r.close()
	options := &amqp.ConnOptions{SASLType: amqp.SASLTypeAnonymous()}
	options.IdleTimeout = time.Duration(s.IdleMs) * time.Millisecond
	url := fmt.Sprintf("amqp://127.0.0.1:%d", s.Port)
	if s.TLSCa != "" {
		pem, err := os.ReadFile(s.TLSCa)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		options.TLSConfig = &tls.Config{RootCAs: roots, ServerName: "localhost"}
		url = fmt.Sprintf("amqps://localhost:%d", s.Port)
	}
	conn, err := amqp.Dial(ctx, url, options)
	if err != nil {
		return nil, err
	}
	r.conn = conn
	r.senders = map[string]*amqp.Sender{}
	r.receivers = map[string]*amqp.Receiver{}
	r.deliveries = map[string]delivery{}
	r.session, err = conn.NewSession(ctx, nil)
	return answer{}, err
}

func (r *remote) close() error {
	if r.conn == nil {
		return nil
	}
	conn := r.conn
	r.conn = nil
	return conn.Close()
}

// Credit is given by hand, so that it is what the test asks for.
func (r *remote) receive(ctx context.Context, s step) (answer, error) {
	options := &amqp.ReceiverOptions{Credit: -1, DynamicAddress: s.Dynamic}
	if s.Copy {
		options.SourceDistributionMode = amqp.SourceDistributionModeCopy
	}
	receiver, err := r.session.NewReceiver(ctx, s.From, options)
	if err != nil {
		return nil, err
	}
	r.receivers[s.Name] = receiver
	if s.Credit > 0 {
		if err := receiver.IssueCredit(uint32(s.Credit)); err != nil {
			return nil, err
		}
	}
	return answer{"address": receiver.Address()}, nil
}

func (r *remote) send(ctx context.Context, s step) (answer, error) {
	message := &amqp.Message{Header: &amqp.MessageHeader{Durable: s.Durable}}
	message.Properties = &amqp.MessageProperties{ReplyTo: s.ReplyTo}
	if s.Correlation != nil {
		message.Properties.CorrelationID = *s.Correlation
	}
	if s.Text != nil {
		message.Value = *s.Text
	} else {
		body, err := hex.DecodeString(s.Body)
		if err != nil {
			return nil, err
		}
		message.Data = [][]byte{body}
	}
	// It returns when the broker has accepted; any other outcome is an error.
	if err := r.senders[s.Name].Send(ctx, message, nil); err != nil {
		return nil, err
	}
	return answer{"state": "accepted"}, nil
}

func (r *remote) take(ctx context.Context, s step) (answer, error) {
	messages := []answer{}
	receiver := r.receivers[s.Name]
	for len(messages) < s.Count {
		message, err := receiver.Receive(ctx, nil)
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if err != nil {
			return nil, err
		}
		r.deliveries[fmt.Sprintf("%s:%d", s.Name, len(messages))] = delivery{receiver, message}
		messages = append(messages, shown(message))
	}
	return answer{"messages": messages}, nil
}

func shown(message *amqp.Message) answer {
	annotations := map[string]string{}
	for name, value := range message.Annotations {
		annotations[fmt.Sprint(name)] = fmt.Sprint(value)
	}
	said := answer{"annotations": annotations}
	if message.Properties != nil {
		said["reply_to"] = message.Properties.ReplyTo
		said["correlation"] = message.Properties.CorrelationID
	}
	if text, is := message.Value.(string); is {
		said["text"] = text
		return said
	}
	var body []byte
	for _, section := range message.Data {
		body = append(body, section...)
	}
	said["body"] = hex.EncodeToString(body)
	return said
}

func (r *remote) settle(ctx context.Context, s step) error {
	settled := r.deliveries[s.Delivery]
	switch s.Outcome {
	case "accepted":
		return settled.receiver.AcceptMessage(ctx, settled.message)
	case "released":
		return settled.receiver.ReleaseMessage(ctx, settled.message)
	case "rejected":
		why := &amqp.Error{Condition: "test:bad", Description: "the test says so"}
		return settled.receiver.RejectMessage(ctx, settled.message, why)
	}
	return fmt.Errorf("no such outcome: %s", s.Outcome)
}

// DrainCredit takes back what is left and, in the same frame, what was not asked for yet: a message
// must have had the time to come.
func (r *remote) drain(ctx context.Context, s step) (answer, error) {
	receiver := r.receivers[s.Name]
	if err := receiver.IssueCredit(uint32(s.Credit)); err != nil {
		return nil, err
	}
	time.Sleep(200 * time.Millisecond)
	note := "`DrainCredit` takes back credit that was not asked for yet, so the program waits 0.2 s before it"
	return answer{"done": true, "note": note}, receiver.DrainCredit(ctx, nil)
}
