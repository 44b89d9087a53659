// One autograd function for every differentiable operation: `name` computes, `name_backward` takes the gradient of the
// first output and then the arguments of `name`, and gives the gradients of its floating-point tensors in their order.
// Everything that a backward pass needs is among the arguments, so no operation stores more than those.
#include "autograd.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <vector>

namespace ameir_fast {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Values = std::vector<c10::IValue>;

// Calls visit(tensor) for every tensor of the arguments in order; its result takes the tensor's place.
template <typename Visit>
void visit_tensors(Values& values, Visit visit) {
  for (c10::IValue& value : values) {
    if (value.isTensor()) {
      value = visit(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : value.toTensorList()) list.push_back(visit(tensor));
      value = list;
    }
  }
}

class Differentiable : public torch::autograd::Function<Differentiable> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList tensors, const c10::OperatorHandle* op,
                               const Values* values) {
    at::AutoDispatchBelowADInplaceOrView below;
    torch::jit::Stack stack(*values);
    op->callBoxed(stack);
    variable_list outputs;
    for (const c10::IValue& value : stack) outputs.push_back(value.toTensor());
    for (size_t i = 1; i < outputs.size(); ++i) ctx->mark_non_differentiable({outputs[i]});
    ctx->set_materialize_grads(false);  // zeros for outputs that nobody differentiates
    ctx->save_for_backward(tensors.vec());
    Values rest(*values);
    visit_tensors(rest, [](const at::Tensor&) { return at::Tensor(); });
    ctx->saved_data["arguments"] = c10::ivalue::Tuple::create(std::move(rest));
    ctx->saved_data["backward"] = op->operator_name().name + "_backward";
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const std::string name = ctx->saved_data["backward"].toStringRef();
    // A gradient of the gradient would be cut off here without a word.
    TORCH_CHECK(!at::GradMode::is_enabled(), name,
                ": native operations are differentiable once; backend 'reference' computes gradients of gradients");
    const variable_list saved = ctx->get_saved_variables();
    variable_list result(saved.size() + 2);  // the operation and the values have none
    if (!gradients[0].defined()) return result;
    torch::jit::Stack stack = {gradients[0]};
    Values values = ctx->saved_data["arguments"].toTupleRef().elements().vec();
    size_t next = 0;
    visit_tensors(values, [&](const at::Tensor&) { return saved[next++]; });
    stack.insert(stack.end(), values.begin(), values.end());
    c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "").callBoxed(stack);
    const std::vector<at::Tensor> found = stack.back().toTensorVector();
    size_t place = 0;
    for (size_t i = 0; i < saved.size(); ++i) {
      if (saved[i].is_floating_point()) result[i] = found.at(place++);
    }
    TORCH_INTERNAL_ASSERT(place == found.size());
    return result;
  }
};

}  // namespace

void differentiable(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  Values values(stack->end() - count, stack->end());
  std::vector<at::Tensor> tensors;
  bool wanted = false;
  visit_tensors(values, [&](const at::Tensor& tensor) {
    tensors.push_back(tensor);
    wanted |= tensor.requires_grad();
    TORCH_CHECK(!tensor._fw_grad(0).defined(), op.schema().name(),
                ": native operations have no forward-mode gradients; backend 'reference' does");
    return tensor;
  });
  if (!wanted || !at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
    return;
  }
  torch::jit::drop(*stack, count);
  for (at::Tensor& output : Differentiable::apply(at::TensorList(tensors), &op, &values)) {
    stack->push_back(std::move(output));
  }
}

}  // namespace ameir_fast
